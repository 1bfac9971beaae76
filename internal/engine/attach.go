package engine

import (
	"context"
	"errors"
	"io"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/fifo"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine/shims"
	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// pendingAttach is an attach to a container that does not run yet. It is
// connected between the making of its process and the start of it, so that it
// misses nothing.
type pendingAttach struct {
	ctx  context.Context
	live chan live  // capacity 1
	err  chan error // capacity 1
}

// live is a connection to a run of a container.
type live struct {
	conn *stdio.Conn
	shim *shims.Shim
}

// Attach connects streams to a container's and returns when the container ends,
// the output ends, or the detach keys are typed. One that is not running is
// waited for, and followed when it starts.
func (e *Engine) Attach(ctx context.Context, ref string, opts AttachOptions) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	keys, err := detachKeys(opts.DetachKeys)
	if err != nil {
		return cluster.Invalidf("Invalid detach keys (%s) provided", opts.DetachKeys)
	}
	rec := c.view()
	if err := attachable(rec); err != nil {
		return err
	}
	s := opts.Streams
	var to live
	if c.mu.Lock(); c.run != nil {
		to.shim = c.run.shim
	}
	c.mu.Unlock()
	if opts.Stream && rec.State.running() {
		if to.conn, err = stdio.Attach(ctx, e.stdio(rec).Socket); err != nil {
			return cluster.Unavailablef("attach: %s", err)
		}
	}
	connected := time.Now() // what was written later comes over the connection
	var wait *pendingAttach
	if opts.Stream && to.conn == nil {
		wait = c.await(ctx)
		defer c.unawait(wait)
	}
	e.emit(rec, events.ActionAttach, nil)
	if opts.Ready != nil {
		opts.Ready()
	}
	if opts.Logs {
		if err := e.replay(ctx, c, s, connected); err != nil {
			return err
		}
	}
	if !opts.Stream {
		return nil
	}
	if to.conn == nil {
		if to, err = wait.wait(); err != nil {
			return err
		}
	}
	defer to.conn.Close()
	return e.attached(ctx, rec, to, s, keys)
}

func attachable(rec record) error {
	switch rec.State.Status {
	case "paused":
		return cluster.Conflictf("container %s is paused, unpause the container before attach", rec.ID)
	case "restarting":
		return cluster.Conflictf("container %s is restarting, wait until the container is running", rec.ID)
	}
	return nil
}

func (c *ctr) await(ctx context.Context) *pendingAttach {
	p := &pendingAttach{ctx: ctx, live: make(chan live, 1), err: make(chan error, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = append(c.pending, p)
	return p
}

func (c *ctr) unawait(p *pendingAttach) {
	c.mu.Lock()
	for i, q := range c.pending {
		if q == p {
			c.pending = append(c.pending[:i:i], c.pending[i+1:]...)
			break
		}
	}
	c.mu.Unlock()
}

func (p *pendingAttach) wait() (live, error) {
	select {
	case to := <-p.live:
		return to, nil
	case err := <-p.err:
		return live{}, err
	case <-p.ctx.Done():
		return live{}, context.Cause(p.ctx)
	}
}

// takePending takes those who wait for the container's start.
func (c *ctr) takePending() []*pendingAttach {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.pending
	c.pending = nil
	return list
}

func (e *Engine) connectPending(ctx context.Context, c *ctr, shim *shims.Shim) {
	for _, p := range c.takePending() {
		conn, err := stdio.Attach(ctx, e.stdio(c.view()).Socket)
		if err != nil {
			p.err <- err
			continue
		}
		// Should the client have left in between, nobody else closes it.
		context.AfterFunc(p.ctx, func() { _ = conn.Close() })
		p.live <- live{conn, shim}
	}
}

func (c *ctr) failPending(err error) {
	for _, p := range c.takePending() {
		p.err <- err
	}
}

// attached copies until the output or, by the detach keys, the input ends.
func (e *Engine) attached(ctx context.Context, rec record, to live, s Streams, keys []byte) error {
	conn := to.conn
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := make(chan error, 1)
	go func() { out <- conn.Copy(s.Stdout, s.Stderr) }()
	in := make(chan error, 1)
	if s.Stdin != nil && rec.Config.OpenStdin {
		go func() { in <- e.feed(ctx, to.shim, rec, s.Stdin, keys) }()
	}
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-out:
			waiting = false
		case ierr := <-in:
			if errors.Is(ierr, errDetached) {
				e.emit(rec, events.ActionDetach, nil)
				_ = conn.Close()
				<-out
				return nil
			}
			in = nil // the client has no more input; output goes on
		case <-ctx.Done():
			_ = conn.Close()
			<-out
			return nil
		}
	}
	if s.Stdin != nil {
		_ = s.Stdin.Close() // frees the goroutine that reads it
	}
	return err
}

// feed copies a client's input to the container's stdin. With StdinOnce, as of
// docker run -i, the container's stdin ends with it.
func (e *Engine) feed(ctx context.Context, shim *shims.Shim, rec record, in io.Reader, keys []byte) error {
	if !rec.Config.Tty {
		keys = nil
	}
	err := pour(ctx, e.stdinPath(rec), &detachReader{r: in, keys: keys})
	if err == nil && rec.Config.StdinOnce && !rec.Config.Tty {
		_, err = shim.Tasks.CloseIO(e.whole(ctx), &taskapi.CloseIORequest{ID: rec.ID, Stdin: true})
	}
	return err
}

// pour copies in to a FIFO until in or ctx ends.
func pour(ctx context.Context, path string, in io.Reader) error {
	// It waits for the shim to open its end, which it does in its own time.
	w, err := fifo.OpenFifo(ctx, path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	_, err = io.Copy(w, in)
	return errors.Join(err, w.Close())
}

var errDetached = errors.New("detached")

// detachReader passes its input on until the keys come in a row.
type detachReader struct {
	r    io.Reader
	keys []byte
	held []byte // the beginning of the keys, kept back
	out  []byte // ready to be read
	err  error
}

func (d *detachReader) Read(p []byte) (int, error) {
	if len(d.keys) == 0 {
		return d.r.Read(p)
	}
	for len(d.out) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, max(len(p), 1))
		n, err := d.r.Read(buf)
		for _, b := range buf[:n] {
			if b == d.keys[len(d.held)] {
				d.held = append(d.held, b)
				if len(d.held) == len(d.keys) {
					d.err = errDetached
					break
				}
				continue
			}
			d.out = append(d.out, d.held...)
			d.held = d.held[:0]
			if b == d.keys[0] && len(d.keys) > 1 {
				d.held = append(d.held, b)
				continue
			}
			d.out = append(d.out, b)
		}
		if err != nil && d.err == nil {
			d.out = append(d.out, d.held...)
			d.err = err
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	return n, nil
}

// detachKeys reads "ctrl-p,ctrl-q" and the like; "" is that.
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		s = "ctrl-p,ctrl-q"
	}
	return term.ToBytes(s)
}

// replay writes what the log has up to until.
func (e *Engine) replay(ctx context.Context, c *ctr, s Streams, until time.Time) error {
	opts := LogsOptions{Stdout: s.Stdout != nil, Stderr: s.Stderr != nil || s.Stdout != nil, Tail: -1, Until: until}
	return e.Logs(ctx, c.id, opts, nil, func(entry LogEntry) error {
		w := s.Stdout
		if entry.Stream == "stderr" {
			w = s.Stderr
		}
		if w == nil {
			return nil
		}
		_, err := w.Write(entry.Line)
		return err
	})
}
