package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/durable"
	"github.com/skep-dev/skep/internal/engine/shims"
)

// record is what is kept of a container on disk.
type record struct {
	ID         string
	Name       string // without the slash
	Created    time.Time
	Swarm      bool
	Config     *container.Config
	HostConfig *container.HostConfig
	Endpoints  []endpoint // the networks it is in, the primary one first
	ImageID    string
	ImageName  string
	ChainID    string
	Platform   ocispec.Platform
	Snapshot   string // the snapshotter
	Path       string
	Args       []string
	Mounts     []mountPoint
	Shim       string // the name of the shim it was last started in
	RunDir     string // its directory below ExecRoot
	State      state
	Restarts   int
	Sandbox    sandbox
}

// endpoint is a container's place in a network: as it was asked for, and, while
// it runs, as it is.
type endpoint struct {
	Network  string
	Settings *apinetwork.EndpointSettings
	MAC      apinetwork.HardwareAddr // as asked for
}

// sandbox is what the network manager made for a running container.
type sandbox struct {
	NetNS string
	Ports apinetwork.PortMap
}

// mountPoint is one of a container's mounts.
type mountPoint struct {
	container.MountPoint
	Spec      mount.Mount
	Anonymous bool // made for this container; rm -v removes it
}

type state struct {
	Status     container.ContainerState
	Pid        int
	ExitCode   int
	Error      string
	OOM        bool
	Started    time.Time
	Finished   time.Time
	UserStop   bool // told to stop: unless-stopped does not start it at boot
	Health     *container.Health
	WasRunning bool // since the record's creation
	Purge      bool // its removal, which has begun, takes its anonymous volumes with it
}

func (s state) running() bool {
	return s.Status == container.StateRunning || s.Status == container.StatePaused
}

// ctr is a container in memory. op serialises what changes its life cycle and is
// held over I/O, as is saving while its record is written; mu guards the fields
// below it and never is.
type ctr struct {
	id     string
	op     chan struct{}
	saving chan struct{}

	mu      sync.Mutex
	rec     record
	run     *run          // the current or last run; nil before the first
	changed chan struct{} // closed and replaced at each exit and at removal
	exits   uint64        // how many times it has ended
	removed bool          //
	pending []*pendingAttach
	cancel  context.CancelFunc // ends the wait of a restart that is due
	streak  int                // restarts in a row, for the back-off
}

// run is one life of a container, from its start to its end.
type run struct {
	shim  *shims.Shim
	gone  chan struct{} // closed when its process has ended
	ended chan struct{} // closed when its end has been dealt with
	stop  context.CancelFunc
}

func newRun(shim *shims.Shim) *run {
	return &run{shim: shim, gone: make(chan struct{}), ended: make(chan struct{})}
}

func newCtr(rec record) *ctr {
	return &ctr{id: rec.ID, op: make(chan struct{}, 1), saving: make(chan struct{}, 1), rec: rec, changed: make(chan struct{})}
}

// shim returns the shim that the container's run is in. One that ended while no
// daemon was there has none, and its record says for a while that it runs.
func (c *ctr) shim() (*shims.Shim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil || c.run.shim == nil {
		return nil, errNotRunning(c.id)
	}
	return c.run.shim, nil
}

// lock takes the container for an operation.
func (c *ctr) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *ctr) unlock() { <-c.op }

// view returns a copy of the record. What it points at is replaced, never changed.
func (c *ctr) view() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// update changes the record and writes it down. Several may at once: what is on
// disk in the end is the newest.
func (e *Engine) update(c *ctr, change func(*record)) error {
	c.mu.Lock()
	change(&c.rec)
	c.mu.Unlock()
	return e.persist(c)
}

// persist writes the record as it is now.
func (e *Engine) persist(c *ctr) error {
	c.saving <- struct{}{}
	defer func() { <-c.saving }()
	return e.save(c.view())
}

// wake tells those who wait that the container has ended or is gone. c.mu is held.
func (c *ctr) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// dir is where a container's files are kept.
func (e *Engine) dir(id string) string { return filepath.Join(e.cfg.DataRoot, "containers", id) }

func (e *Engine) file(id, name string) string { return filepath.Join(e.dir(id), name) }

// runDir is where a running container's bundle and sockets are.
func (e *Engine) runDir(id string) string { return filepath.Join(e.cfg.ExecRoot, "c", id[:16]) }

// logPath is where Docker's users look for a container's log.
func (e *Engine) logPath(id string) string { return e.file(id, id+"-json.log") }

const recordFile = "container.json"

// save writes a record, and has it on disk when it returns: after a power cut a
// container is there with all that is needed to start it again, and one whose
// policy says so is started.
func (e *Engine) save(rec record) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return durable.WriteFile(e.file(rec.ID, recordFile), data)
}

// loadRecords reads what is on disk, and tells which containers are to be kept:
// also those whose record cannot be read, which are reported and left. One
// without a record was never made, or all but removed.
func (e *Engine) loadRecords() (recs []record, kept map[string]bool, err error) {
	root := filepath.Join(e.cfg.DataRoot, "containers")
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, nil, err
	}
	kept = map[string]bool{}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(root, entry.Name(), recordFile))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		kept[entry.Name()] = true
		var rec record
		if err == nil {
			err = json.Unmarshal(data, &rec)
		}
		if err == nil && (rec.ID != entry.Name() || rec.Config == nil || rec.HostConfig == nil) {
			err = errors.New("incomplete record")
		}
		if err != nil {
			e.log.Warn("container left alone", "container", entry.Name(), "err", err)
			continue
		}
		recs = append(recs, rec)
	}
	return recs, kept, nil
}

// find returns the container of that name, id or unique prefix of an id.
func (e *Engine) find(ref string) (*ctr, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ref == "" {
		return nil, cluster.Invalidf("No container name or ID supplied")
	}
	if c := e.ctrs[ref]; c != nil {
		return c, nil
	}
	if id, ok := e.names[strings.TrimPrefix(ref, "/")]; ok {
		if c := e.ctrs[id]; c != nil {
			return c, nil
		}
	}
	var found []*ctr
	for id, c := range e.ctrs {
		if strings.HasPrefix(id, ref) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, cluster.NotFoundf("No such container: %s", ref)
	case 1:
		return found[0], nil
	default:
		return nil, cluster.NotFoundf("Multiple IDs found with provided prefix: %s", ref)
	}
}

// all returns every container, the newest first.
func (e *Engine) all() []*ctr {
	e.mu.Lock()
	list := make([]*ctr, 0, len(e.ctrs))
	for _, c := range e.ctrs {
		list = append(list, c)
	}
	e.mu.Unlock()
	created := map[*ctr]time.Time{}
	for _, c := range list {
		created[c] = c.view().Created
	}
	sort.Slice(list, func(i, j int) bool {
		if a, b := created[list[i]], created[list[j]]; !a.Equal(b) {
			return a.After(b)
		}
		return list[i].id < list[j].id
	})
	return list
}

// reserve gives a name to a container, or says whose it is.
func (e *Engine) reserve(name, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if owner, taken := e.names[name]; taken && owner != id {
		return cluster.Conflictf("Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", name, owner)
	}
	e.names[name] = id
	return nil
}

func (e *Engine) free(name, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.names[name] == id {
		delete(e.names, name)
	}
}

// errNotRunning is Docker's for what needs a running container.
func errNotRunning(id string) error {
	return cluster.Conflictf("container %s is not running", id)
}

// context returns ctx with containerd's namespace.
func (e *Engine) context(ctx context.Context) context.Context {
	return e.withNamespace(ctx)
}

// whole returns a context for what must be finished once begun, whether or not
// the client still waits.
func (e *Engine) whole(ctx context.Context) context.Context {
	return e.withNamespace(context.WithoutCancel(ctx))
}

func wrap(id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("container %s: %w", id[:12], err)
}
