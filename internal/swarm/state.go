package swarm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/durable"
)

// The files under <data-root>/swarm.
const (
	fileState  = "state.json"
	dirCerts   = "certificates"
	dirRaft    = "raft"
	fileKeys   = "raft-keys.json"
	stateVersn = 1
)

// state is what a node remembers of its membership over a restart, besides its
// certificate, its tasks and, on managers, the log.
type state struct {
	Version int
	NodeID  string
	addresses
	// Managers are those last heard of.
	Managers []dispatch.Manager
	// Joined is the address under which this node is (or was) a member of the
	// Raft group; "" when it is none.
	Joined string `json:",omitempty"`
}

// loadState reads the state, nil when this host is in no swarm.
func loadState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, fileState))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("swarm state: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("swarm state: %w", err)
	}
	if s.Version != stateVersn || s.NodeID == "" {
		return nil, fmt.Errorf("swarm state: %s is not of this version", filepath.Join(dir, fileState))
	}
	return s, nil
}

// save writes the state so that a crash leaves the old or the new one.
func (s *state) save(dir string) error {
	s.Version = stateVersn
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("swarm state: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("swarm state: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, fileState), b); err != nil {
		return fmt.Errorf("swarm state: %w", err)
	}
	return nil
}

// wipe removes all that the membership left on disk. The state goes first: a
// crash in between leaves a host that is in no swarm.
func wipe(dir string) error {
	err := os.Remove(filepath.Join(dir, fileState))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, name := range []string{dirCerts, dirRaft, fileKeys} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
	}
	return err
}
