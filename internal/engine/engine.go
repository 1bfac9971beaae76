// Package engine runs containers on containerd: their life cycle, exec, attach,
// logs, health, events and restart policies. It owns the container records under
// the data root and the containerd that runs in this process. It never knows of
// swarms. httpapi and agent call it, with the Engine API's own types.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/engine/layers"
	"github.com/skep-dev/skep/internal/engine/shims"
	"github.com/skep-dev/skep/internal/runtime"
)

// Engine holds the containers of one daemon. A ref is a container's name, its id
// or a unique prefix of it; an unknown one is errdefs.ErrNotFound with Docker's
// words ("No such container: x").
type Engine struct {
	cfg      Config
	log      *slog.Logger
	layers   *layers.Store
	ownStore bool // layers was opened by New
	pool     *shims.Pool
	programs runtime.Programs
	host     host
	events   *bus
	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	work     sync.WaitGroup // watchers, health checks, restarts
	opened   chan struct{}  // closed when New is done

	mu    sync.Mutex
	ctrs  map[string]*ctr
	names map[string]string // name to id
	execs map[string]*execution
}

// CreateRequest is what Create makes a container from.
type CreateRequest struct {
	Name     string // "" picks one
	Request  container.CreateRequest
	Platform *ocispec.Platform
	// Swarm marks a container the agent made for a task: it is shown by ps like
	// any other but its restart is the agent's business, and its networks are
	// given as ready endpoints.
	Swarm bool
}

// StopOptions are those of stop and restart. A nil Timeout means the container's own.
type StopOptions struct {
	Signal  string
	Timeout *int
}

// RemoveOptions are those of rm.
type RemoveOptions struct{ Force, Volumes, Link bool }

// ListOptions are those of ps. Filters holds the API's filters, key to values.
type ListOptions struct {
	All, Size bool
	Limit     int
	Filters   map[string]map[string]bool
}

// LogsOptions are those of logs. Tail < 0 means all.
type LogsOptions struct {
	Stdout, Stderr, Follow bool
	Tail                   int
	Since, Until           time.Time
}

// LogEntry is one line (or part of one) that a container wrote.
type LogEntry struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Line    []byte // with its newline, if it had one
	Partial bool
	Attrs   map[string]string // what the options of the log name beside it; shared, not to be changed
}

// Streams are the caller's ends of an attach or exec. A nil one is not wanted.
type Streams struct {
	Stdin  io.ReadCloser
	Stdout io.Writer
	Stderr io.Writer // unused with a terminal
}

// AttachOptions are those of attach. Ready, if set, is called once the streams
// are connected and before anything is copied.
type AttachOptions struct {
	Stream, Logs bool
	DetachKeys   string
	Streams      Streams
	Ready        func()
}

// WaitResult is how a container ended.
type WaitResult struct {
	ExitCode int
	Err      string
}

// New opens the engine on its data: containers that still run are adopted, those
// that ended meanwhile have their exit codes collected and their restart
// policies applied. The caller ends it with Run or Close.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, layers: cfg.Layers, events: newBus(), host: readHost(cfg.Log),
		ctrs: map[string]*ctr{}, names: map[string]string{}, execs: map[string]*execution{},
		opened: make(chan struct{}),
	}
	e.ctx, e.stop = context.WithCancel(e.withNamespace(context.WithoutCancel(ctx)))
	if err := e.open(e.withNamespace(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: %w", err), e.Close())
	}
	close(e.opened)
	return e, nil
}

func (e *Engine) open(ctx context.Context) (err error) {
	for _, dir := range []string{filepath.Join(e.cfg.DataRoot, "containers"), filepath.Join(e.cfg.ExecRoot, "c")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if e.programs, err = runtime.Unpack(filepath.Join(e.cfg.DataRoot, "runtime")); err != nil {
		return err
	}
	if e.layers == nil {
		if e.layers, err = layers.Open(ctx, e.cfg.layersConfig()); err != nil {
			return err
		}
		e.ownStore = true
	}
	// Compiled seccomp filters, for our runc; see third_party/runc.
	filters := filepath.Join(e.cfg.ExecRoot, "seccomp")
	if err := os.MkdirAll(filters, 0o700); err != nil {
		return err
	}
	e.pool, err = shims.Open(ctx, shims.Config{
		Env: []string{"SKEP_SECCOMP_CACHE=" + filters},
		Dir: filepath.Join(e.cfg.ExecRoot, "shims"), Program: e.programs.Shim,
		Namespace: e.cfg.Namespace, Places: e.cfg.ContainersPerShim, Log: e.log,
	})
	if err != nil {
		return err
	}
	if err := e.adopt(ctx); err != nil {
		return err
	}
	e.work.Go(func() {
		if err := e.pool.Warm(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("no shim was started ahead", "err", err)
		}
	})
	return nil
}

// Run blocks until ctx ends and then closes the engine.
func (e *Engine) Run(ctx context.Context) error {
	<-ctx.Done()
	return e.Close()
}

// Close lets go of everything. Containers go on running and are adopted by the
// next engine on the same roots.
func (e *Engine) Close() error {
	e.stop()
	e.work.Wait()
	if e.pool != nil {
		e.pool.Close(e.withNamespace(context.Background()))
	}
	if e.ownStore && e.layers != nil {
		return e.layers.Close()
	}
	return nil
}

// Layers returns the containerd that the engine keeps snapshots in.
func (e *Engine) Layers() *layers.Store { return e.layers }

func (e *Engine) withNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, e.cfg.Namespace)
}
