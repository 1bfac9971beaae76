// Package shims keeps the shim processes of one daemon: it starts them, connects
// to those an earlier daemon left, and finds each new container a place in one.
// A shim holds several containers, which saves an exec and most of the memory of
// each; how many is bounded, because a shim that dies takes what it knew with it.
// It knows nothing of what runs in them. engine calls it.
package shims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"

	"github.com/skep-dev/skep/internal/cluster"
)

// Config says which program to run and where.
type Config struct {
	Dir       string // one directory a shim is made below it; short, it holds sockets
	Program   string
	Namespace string
	Places    int      // containers a shim
	Env       []string // for the shim and the runc it calls, beside the daemon's own
	Log       *slog.Logger
}

// Pool is the shims of one daemon.
type Pool struct {
	cfg   Config
	spawn chan struct{} // held while one is being started, so that a burst shares it

	mu    sync.Mutex
	shims map[string]*Shim
}

// Shim is one running shim process.
type Shim struct {
	Name  string
	Tasks taskapi.TTRPCTaskService
	// Gone is closed when the connection has ended: the shim died, or Close.
	Gone chan struct{}

	client *ttrpc.Client
	used   int // guarded by the pool's mu
}

// Open connects to the shims that run below cfg.Dir and removes what is left of
// others.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	p := &Pool{cfg: cfg, spawn: make(chan struct{}, 1), shims: map[string]*Shim{}}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		s, err := p.connect(ctx, entry.Name())
		if err == nil {
			_, err = s.Tasks.Connect(ctx, &taskapi.ConnectRequest{})
		}
		if err != nil {
			cfg.Log.Info("a shim is gone", "shim", entry.Name(), "err", err)
			if err := os.RemoveAll(filepath.Join(cfg.Dir, entry.Name())); err != nil {
				return nil, err
			}
			continue
		}
		p.shims[s.Name] = s
	}
	return p, nil
}

// Hold finds the shim of that name and takes a place in it, for a container that
// was found in it.
func (p *Pool) Hold(name string) (*Shim, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.shims[name]
	if ok {
		s.used++
	}
	return s, ok
}

// Take takes a place in a shim that has one, or in a new shim.
func (p *Pool) Take(ctx context.Context) (*Shim, error) {
	if s := p.place(); s != nil {
		return s, nil
	}
	select {
	case p.spawn <- struct{}{}:
		defer func() { <-p.spawn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s := p.place(); s != nil {
		return s, nil
	}
	s, err := p.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shims[s.Name] = s
	s.used++
	return s, nil
}

// Warm makes sure that the next Take need not wait for a new shim.
func (p *Pool) Warm(ctx context.Context) error {
	s, err := p.Take(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.used--
	return nil
}

// place returns the fullest shim that has room, so that others run empty.
func (p *Pool) place() *Shim {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *Shim
	for _, name := range p.names() {
		s := p.shims[name]
		if !s.gone() && s.used < p.cfg.Places && (best == nil || s.used > best.used) {
			best = s
		}
	}
	if best != nil {
		best.used++
	}
	return best
}

func (p *Pool) names() []string {
	names := make([]string, 0, len(p.shims))
	for name := range p.shims {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Release gives a place back. An empty shim is told to leave if another has room;
// one that died is forgotten with its last container.
func (p *Pool) Release(ctx context.Context, s *Shim) {
	p.mu.Lock()
	s.used--
	leave := s.used == 0 && s.gone()
	if s.used == 0 {
		for _, other := range p.shims {
			leave = leave || (other != s && other.used < p.cfg.Places && !other.gone())
		}
	}
	if leave {
		delete(p.shims, s.Name)
	}
	p.mu.Unlock()
	if leave {
		p.dismiss(ctx, s)
	}
}

// dismiss tells an empty shim to end. It refuses if it has a container after all.
func (p *Pool) dismiss(ctx context.Context, s *Shim) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _ = s.Tasks.Shutdown(ctx, &taskapi.ShutdownRequest{Now: true}) // its answer may not get out any more
	_ = s.client.Close()
	_ = os.RemoveAll(filepath.Join(p.cfg.Dir, s.Name))
}

// Close ends the connections. Shims with containers stay; empty ones leave.
func (p *Pool) Close(ctx context.Context) {
	p.mu.Lock()
	all := p.shims
	p.shims = map[string]*Shim{}
	p.mu.Unlock()
	for _, s := range all {
		if s.used == 0 {
			p.dismiss(ctx, s)
			continue
		}
		_ = s.client.Close()
	}
}

func (s *Shim) gone() bool {
	select {
	case <-s.Gone:
		return true
	default:
		return false
	}
}

// start runs a new shim. The socket is made here and handed over, so that it can
// be connected to at once.
func (p *Pool) start(ctx context.Context) (*Shim, error) {
	name := cluster.NewID()[:6]
	dir := filepath.Join(p.cfg.Dir, name)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	s, err := p.run(ctx, name, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (p *Pool) run(ctx context.Context, name, dir string) (*Shim, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	ln.SetUnlinkOnClose(false)
	sock, err := ln.File()
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	out, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(p.cfg.Program, "-namespace", p.cfg.Namespace)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), p.cfg.Env...)
	cmd.ExtraFiles = []*os.File{sock}
	// Of a session of its own: the daemon's terminal and its end are not the shim's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// Nobody waits for this goroutine: it reaps a process that outlives us.
	go func() { _ = cmd.Wait() }()
	s, err := p.connect(ctx, name)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill())
	}
	return s, nil
}

func (p *Pool) connect(ctx context.Context, name string) (*Shim, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(p.cfg.Dir, name, "s"))
	if err != nil {
		return nil, err
	}
	s := &Shim{Name: name, Gone: make(chan struct{})}
	s.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.Gone) }), ttrpc.WithUnaryClientInterceptor(limit))
	s.Tasks = taskapi.NewTTRPCTaskClient(s.client)
	return s, nil
}

// patience is how long a shim may take for anything but waiting: it runs runc,
// which a busy disk holds up, but nothing of it takes minutes.
const patience = 2 * time.Minute

// limit gives each call but Wait an end, so that a shim that hangs does not hang
// the daemon.
func limit(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if !strings.HasSuffix(info.FullMethod, "/Wait") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	return invoke(ctx, req, resp)
}
