package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
)

// record is what is kept of a task on disk.
type record struct {
	Task   *cluster.WantedTask
	Status cluster.Status
}

var idPattern = regexp.MustCompile(`^[a-z0-9]{1,64}$`)

// validID reports whether an id may be a file's name.
func validID(id string) bool { return idPattern.MatchString(id) }

func (a *Agent) file(id string) string { return filepath.Join(a.cfg.Dir, "tasks", id+".json") }

// save writes a task down. It is not synced: what a power cut takes back is what
// the power cut has ended anyway.
func (a *Agent) save(r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := a.file(r.Task.ID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// erase forgets a task and its payloads.
func (a *Agent) erase(id string) error {
	err := os.Remove(a.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(a.payloadDir(id)))
}

// load returns the tasks on disk. One that cannot be read is left where it is:
// the manager's complete set brings it again.
func (a *Agent) load() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(a.cfg.Dir, "tasks"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !validID(id) {
			continue
		}
		var r record
		raw, err := os.ReadFile(a.file(id))
		if err == nil {
			err = json.Unmarshal(raw, &r)
		}
		if err == nil && (r.Task == nil || r.Task.ID != id || r.Task.Spec == nil) {
			err = errors.New("incomplete record")
		}
		if err != nil {
			a.log.Warn("a task's record is left alone", "task", id, "err", err)
			continue
		}
		all = append(all, r)
	}
	return all, nil
}
