package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"

	"github.com/skep-dev/skep/internal/cluster"
)

// Stop sends the stop signal, then after the timeout KILL; on an ended container
// it does nothing.
func (e *Engine) Stop(ctx context.Context, ref string, opts StopOptions) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	return e.stopHeld(ctx, c, opts, true)
}

// stopHeld stops a container that the caller holds. user says that a user, not a
// restart, wants it.
func (e *Engine) stopHeld(ctx context.Context, c *ctr, opts StopOptions, user bool) error {
	rec := c.view()
	sig, err := stopSignal(rec, opts.Signal)
	if err != nil {
		return err
	}
	if rec.State.Status == container.StateRestarting {
		c.dropRestart()
		return e.update(c, func(r *record) {
			r.State.Status, r.State.UserStop = container.StateExited, user || r.State.UserStop
			c.exits++
			c.wake()
		})
	}
	if !rec.State.running() {
		return nil
	}
	if err := e.update(c, func(r *record) { r.State.UserStop = true }); err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	timeout := 10
	if rec.Config.StopTimeout != nil {
		timeout = *rec.Config.StopTimeout
	}
	if opts.Timeout != nil {
		timeout = *opts.Timeout
	}
	if err := e.signal(e.whole(ctx), c, sig); err != nil && !errdefs.IsNotFound(err) {
		e.log.Warn("stop signal not sent", "container", c.id[:12], "err", err)
	}
	if rec.State.Status == container.StatePaused {
		// A frozen process heeds no signal until it is thawed.
		if err := e.thaw(e.whole(ctx), c); err != nil {
			return err
		}
	}
	if err := e.awaitRun(ctx, c, r, timeout); err != nil {
		return err
	}
	if user {
		e.emit(c.view(), events.ActionStop, nil)
	}
	return nil
}

// awaitRun waits for a run's end, and kills it after timeout seconds; a negative
// timeout waits for ever.
func (e *Engine) awaitRun(ctx context.Context, c *ctr, r *run, timeout int) error {
	var grace <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(time.Duration(timeout) * time.Second)
		defer t.Stop()
		grace = t.C
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.ctx.Done():
		return cluster.Unavailablef("the daemon is shutting down")
	case <-grace:
	}
	return e.killRun(ctx, c, r)
}

// killRun sends KILL and waits for the end.
func (e *Engine) killRun(ctx context.Context, c *ctr, r *run) error {
	for range 3 {
		if err := e.signal(e.whole(ctx), c, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			e.log.Warn("KILL not sent", "container", c.id[:12], "err", err)
		}
		select {
		case <-r.ended:
			return nil
		case <-e.ctx.Done():
			return cluster.Unavailablef("the daemon is shutting down")
		case <-time.After(5 * time.Second):
		}
	}
	return cluster.Unavailablef("cannot stop container: %s: tried to kill container, but did not receive an exit event", c.id)
}

func stopSignal(rec record, name string) (syscall.Signal, error) {
	if name == "" {
		name = rec.Config.StopSignal
	}
	if name == "" {
		return syscall.SIGTERM, nil
	}
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, cluster.Invalidf("%s", err)
	}
	return sig, nil
}

// signal sends a signal to the container's first process and tells of it.
func (e *Engine) signal(ctx context.Context, c *ctr, sig syscall.Signal) error {
	rec := c.view()
	shim, err := c.shim()
	if err != nil {
		return err
	}
	// With a PID namespace of the host's or another's, the others of the
	// container would outlive its first process.
	all := sig == syscall.SIGKILL && !rec.HostConfig.PidMode.IsPrivate()
	_, err = shim.Tasks.Kill(ctx, &taskapi.KillRequest{ID: c.id, Signal: uint32(sig), All: all})
	if err != nil {
		return native(err)
	}
	e.emit(rec, events.ActionKill, map[string]string{"signal": itoa(int(sig))})
	return nil
}

// native turns a shim's answer into an error of errdefs' kinds.
func native(err error) error {
	if err == nil {
		return nil
	}
	err = errgrpc.ToNative(err)
	if strings.Contains(err.Error(), "process already finished") || strings.Contains(err.Error(), "not running") {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

// Restart stops and starts a container.
func (e *Engine) Restart(ctx context.Context, ref string, opts StopOptions) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if err := e.stopHeld(ctx, c, opts, true); err != nil {
		return err
	}
	c.dropRestart()
	if err := e.start(e.whole(ctx), c); err != nil {
		return err
	}
	e.emit(c.view(), events.ActionRestart, nil)
	return nil
}

// Kill sends a signal (KILL when empty).
func (e *Engine) Kill(ctx context.Context, ref, name string) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = signal.ParseSignal(name); err != nil {
			return cluster.Invalidf("%s", err)
		}
	}
	rec := c.view()
	if rec.State.Status == container.StateRestarting && sig == syscall.SIGKILL {
		return e.Stop(ctx, c.id, StopOptions{})
	}
	if !rec.State.running() {
		return cluster.Conflictf("cannot kill container: %s: container %s is not running", ref, c.id)
	}
	stop, err := stopSignal(rec, "")
	if err == nil && (sig == syscall.SIGKILL || sig == stop) {
		// As Docker: who kills a container does not want it restarted at once.
		err = e.update(c, func(r *record) { r.State.UserStop = true })
	}
	if err != nil {
		return err
	}
	if err := e.signal(e.whole(ctx), c, sig); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("cannot kill container: %s: %w", ref, err)
	}
	if sig != syscall.SIGKILL {
		return nil
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if rec.State.Status == container.StatePaused {
		if err := e.thaw(e.whole(ctx), c); err != nil {
			return err
		}
	}
	return e.awaitRun(ctx, c, r, 10)
}

// Pause freezes a container.
func (e *Engine) Pause(ctx context.Context, ref string) error {
	return e.held(ctx, ref, func(c *ctr) error {
		switch rec := c.view(); rec.State.Status {
		case container.StateRunning:
		case container.StatePaused:
			return cluster.Conflictf("container %s is already paused", c.id)
		case container.StateRestarting:
			return cluster.Conflictf("container %s is restarting, wait until the container is running", c.id)
		default:
			return errNotRunning(c.id)
		}
		shim, err := c.shim()
		if err != nil {
			return err
		}
		if _, err := shim.Tasks.Pause(e.whole(ctx), &taskapi.PauseRequest{ID: c.id}); err != nil {
			return fmt.Errorf("cannot pause container %s: %w", c.id, native(err))
		}
		err = e.update(c, func(r *record) { r.State.Status = container.StatePaused })
		e.emit(c.view(), events.ActionPause, nil)
		return err
	})
}

// Unpause thaws one.
func (e *Engine) Unpause(ctx context.Context, ref string) error {
	return e.held(ctx, ref, func(c *ctr) error {
		if c.view().State.Status != container.StatePaused {
			return cluster.Conflictf("container %s is not paused", c.id)
		}
		if err := e.thaw(e.whole(ctx), c); err != nil {
			return err
		}
		e.emit(c.view(), events.ActionUnPause, nil)
		return nil
	})
}

func (e *Engine) thaw(ctx context.Context, c *ctr) error {
	shim, err := c.shim()
	if err != nil {
		return err
	}
	_, err = shim.Tasks.Resume(ctx, &taskapi.ResumeRequest{ID: c.id})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("cannot unpause container %s: %w", c.id, err)
	}
	return e.update(c, func(r *record) {
		if r.State.Status == container.StatePaused {
			r.State.Status = container.StateRunning
		}
	})
}

// held finds a container and calls f while holding it.
func (e *Engine) held(ctx context.Context, ref string, f func(*ctr) error) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	return f(c)
}

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	return e.held(ctx, ref, func(c *ctr) error {
		name = strings.TrimPrefix(name, "/")
		old := c.view()
		switch {
		case name == "":
			return cluster.Invalidf("Neither old nor new names may be empty")
		case name == old.Name:
			return cluster.Invalidf("Renaming a container with the same name as its current name")
		case !validName.MatchString(name):
			return cluster.Invalidf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
		}
		if err := e.reserve(name, c.id); err != nil {
			return err
		}
		if err := e.update(c, func(r *record) { r.Name = name }); err != nil {
			e.free(name, c.id)
			return errors.Join(err, e.update(c, func(r *record) { r.Name = old.Name }))
		}
		e.free(old.Name, c.id)
		if e.cfg.Networks != nil {
			if err := e.cfg.Networks.Rename(e.whole(ctx), c.id, name); err != nil {
				e.log.Warn("the networks still know the container by its old name", "container", old.Name, "err", err)
			}
		}
		e.emit(c.view(), events.ActionRename, map[string]string{"oldName": "/" + old.Name})
		return nil
	})
}

// Resize sets the size of a container's terminal.
func (e *Engine) Resize(ctx context.Context, ref string, height, width uint32) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	rec := c.view()
	if !rec.State.running() {
		return errNotRunning(c.id)
	}
	shim, err := c.shim()
	if err != nil {
		return err
	}
	if _, err := shim.Tasks.ResizePty(e.whole(ctx), &taskapi.ResizePtyRequest{ID: c.id, Height: height, Width: width}); err != nil {
		return native(err)
	}
	e.emit(rec, events.ActionResize, map[string]string{"height": itoa(int(height)), "width": itoa(int(width))})
	return nil
}

// Gone returns a channel that is closed when the process of a container that runs
// has ended. That is before Wait and the events tell of it: giving back what the
// container held takes its time, on a busy host seconds, and nobody should
// connect to it meanwhile. Of a container that does not run it is closed.
func (e *Engine) Gone(ref string) (<-chan struct{}, error) {
	c, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		gone := make(chan struct{})
		close(gone)
		return gone, nil
	}
	return c.run.gone, nil
}

// Wait returns a channel that yields once, when the condition is met: a container
// that does not run (or the next end of one that does), the next end, or its
// removal.
func (e *Engine) Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan WaitResult, error) {
	switch cond {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, cluster.Invalidf("invalid condition: %q", cond)
	}
	c, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	out := make(chan WaitResult, 1)
	c.mu.Lock()
	from := c.exits
	c.mu.Unlock()
	met := func() (WaitResult, bool, <-chan struct{}) {
		c.mu.Lock()
		defer c.mu.Unlock()
		st := c.rec.State
		res := WaitResult{ExitCode: st.ExitCode} // why a start failed is Start's to tell
		done := c.removed
		switch cond {
		case container.WaitConditionNextExit:
			done = done || c.exits > from
		case container.WaitConditionRemoved:
		default:
			done = done || c.exits > from || !st.running() && st.Status != container.StateRestarting
		}
		return res, done, c.changed
	}
	go func() { // ends with ctx, as the caller knows
		for {
			res, done, changed := met()
			if done {
				out <- res
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				out <- WaitResult{ExitCode: -1, Err: ctx.Err().Error()}
				return
			case <-e.ctx.Done():
				out <- WaitResult{ExitCode: -1, Err: "the daemon is shutting down"}
				return
			}
		}
	}()
	return out, nil
}
