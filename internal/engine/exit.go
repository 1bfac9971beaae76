package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ctrmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// watch waits for a run's end and deals with it.
func (e *Engine) watch(c *ctr, r *run) {
	ctx, cancel := context.WithCancel(e.ctx)
	c.mu.Lock()
	r.stop = cancel
	c.mu.Unlock()
	e.work.Go(func() {
		resp, err := r.shim.Tasks.Wait(e.ctx, &taskapi.WaitRequest{ID: c.id})
		if e.ctx.Err() != nil {
			cancel()
			return // the engine is closing; the container goes on
		}
		cancel() // health checks
		end := stdio.Exit{Code: 137, At: time.Now().UTC()}
		if err == nil {
			end.Code, end.At = int(resp.ExitStatus), resp.ExitedAt.AsTime()
		} else {
			e.log.Warn("a shim is gone, and with it a container", "container", c.id[:12], "err", err)
			end = e.lostEnd(c.view())
		}
		e.ended(context.WithoutCancel(ctx), c, r, end)
	})
}

// ended deals with a run's end: what it held is given back, its end is recorded
// and told, and its restart policy applied.
func (e *Engine) ended(ctx context.Context, c *ctr, r *run, end stdio.Exit) {
	close(r.gone)
	rec := c.view()
	oom := e.oomKilled(rec)
	e.clear(ctx, &rec, r)

	c.mu.Lock()
	ran := end.At.Sub(rec.State.Started)
	delay, again := c.next(end.Code, ran)
	c.mu.Unlock()
	err := e.update(c, func(cur *record) {
		cur.Endpoints, cur.Sandbox = rec.Endpoints, rec.Sandbox
		st := &cur.State
		st.Pid, st.ExitCode, st.Finished, st.OOM, st.Error = 0, end.Code, end.At.UTC(), oom, ""
		st.Status = container.StateExited
		if again {
			st.Status = container.StateRestarting
			cur.Restarts++
		}
		if st.Health != nil {
			h := *st.Health
			h.Status = container.Unhealthy
			st.Health = &h
		}
		rec = *cur
		c.exits++
		c.wake()
	})
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	if oom {
		e.emit(rec, events.ActionOOM, nil)
	}
	e.emit(rec, events.ActionDie, map[string]string{
		"exitCode": itoa(end.Code), "execDuration": itoa(int(ran.Seconds())),
	})
	e.log.Debug("container ended", "container", c.id[:12], "code", end.Code)
	e.forgetExecs(c.id)
	close(r.ended)
	switch {
	case again:
		e.restartLater(c, delay)
	case rec.HostConfig.AutoRemove:
		e.removeLater(c)
	}
}

// clear gives back what a run held.
func (e *Engine) clear(ctx context.Context, rec *record, r *run) {
	note := func(what string, err error) {
		if err != nil {
			e.log.Warn("not cleared after a container's end", "container", rec.ID[:12], "what", what, "err", err)
		}
	}
	if r.shim != nil {
		_, err := r.shim.Tasks.Delete(ctx, &taskapi.DeleteRequest{ID: rec.ID})
		if err != nil {
			if !errdefs.IsNotFound(native(err)) {
				note("process", err)
			}
			e.forceDelete(ctx, *rec)
			// Now that nothing of it is left, the shim can forget it.
			_, _ = r.shim.Tasks.Delete(ctx, &taskapi.DeleteRequest{ID: rec.ID})
		}
		e.pool.Release(ctx, r.shim)
	} else {
		e.forceDelete(ctx, *rec)
	}
	note("network", e.leave(ctx, rec))
	note("volumes", e.releaseVolumes(ctx, *rec))
	note("bundle", removeBundle(rec.RunDir))
}

// removeBundle removes a bundle, but never through a file system that is still
// mounted in it.
func removeBundle(dir string) error {
	if err := unpinSubpaths(dir); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, "rootfs")); err != nil && !errors.Is(err, os.ErrNotExist) {
		if err := ctrmount.UnmountRecursive(filepath.Join(dir, "rootfs"), 0); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, "rootfs")); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// forceDelete removes what runc and the kernel still have of a container whose
// shim cannot do it any more.
func (e *Engine) forceDelete(ctx context.Context, rec record) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	root := filepath.Join(e.cfg.ExecRoot, "runc", e.cfg.Namespace)
	if _, err := os.Stat(filepath.Join(root, rec.ID)); err == nil {
		out, err := exec.CommandContext(ctx, e.programs.Runc, "--root", root, "delete", "--force", rec.ID).CombinedOutput()
		if err != nil {
			e.log.Warn("runc could not remove a container", "container", rec.ID[:12], "err", err, "out", string(out))
		}
	}
	e.killCgroup(ctx, rec)
	if err := ctrmount.UnmountRecursive(filepath.Join(rec.RunDir, "rootfs"), 0); err != nil {
		e.log.Warn("file system still mounted", "container", rec.ID[:12], "err", err)
	}
	for _, dir := range e.cgroupDirs(rec) {
		_ = os.Remove(dir) // one in use is not ours to remove
	}
}

// killCgroup kills what is left in a container's cgroup: a runc that was killed
// while it made one has left its child there, on record nowhere.
func (e *Engine) killCgroup(ctx context.Context, rec record) {
	for {
		left := 0
		for _, dir := range e.cgroupDirs(rec) {
			data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // one that is gone has none
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					left++
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			e.log.Warn("processes still run", "container", rec.ID[:12], "count", left)
			return
		}
	}
}

// cgroupDirs are a container's cgroups, in each hierarchy, with those that it has
// made below them. Each comes before the one it is in.
func (e *Engine) cgroupDirs(rec record) (dirs []string) {
	tops := []string{filepath.Join(e.host.cgroups, e.cgroup(rec))}
	if !e.host.unified {
		tops, _ = filepath.Glob(filepath.Join(e.host.cgroups, "*", e.cgroup(rec)))
	}
	for _, top := range tops {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // one that has just gone is no matter
		})
	}
	slices.Reverse(dirs)
	return dirs
}

// lostEnd finds out how a container ended whose shim is gone: from the file the
// shim left, or else it is taken as killed.
func (e *Engine) lostEnd(rec record) stdio.Exit {
	end := stdio.Exit{Code: 137, At: time.Now().UTC()}
	data, err := os.ReadFile(e.stdio(rec).Exit)
	if err != nil {
		return end
	}
	var left stdio.Exit
	if err := json.Unmarshal(data, &left); err != nil || left.At.Before(rec.State.Started) {
		return end
	}
	return left
}

// The back-off of restarts, Docker's: 100 ms, doubled each time up to a minute,
// from the beginning again after a run of ten seconds.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = time.Minute
	goodRun    = 10 * time.Second
)

// next decides whether a container that has ended is started again, and when.
// c.mu is held.
func (c *ctr) next(code int, ran time.Duration) (time.Duration, bool) {
	p := c.rec.HostConfig.RestartPolicy
	if c.rec.Swarm || c.rec.State.UserStop || c.removed {
		return 0, false
	}
	if ran >= goodRun {
		c.streak = 0
	}
	again := false
	switch {
	case p.IsAlways(), p.IsUnlessStopped():
		again = true
	case p.IsOnFailure():
		again = code != 0 && (p.MaximumRetryCount == 0 || c.rec.Restarts < p.MaximumRetryCount)
	}
	if !again {
		return 0, false
	}
	delay := min(firstDelay<<min(c.streak, 20), maxDelay)
	c.streak++
	return delay, true
}

// restartLater starts a container again after delay, unless somebody stops it first.
func (e *Engine) restartLater(c *ctr, delay time.Duration) {
	ctx, cancel := context.WithCancel(e.ctx)
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	e.work.Go(func() {
		defer cancel()
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		if c.lock(ctx) != nil {
			return
		}
		defer c.unlock()
		if ctx.Err() != nil || c.view().State.Status != container.StateRestarting {
			return
		}
		if err := e.start(context.WithoutCancel(ctx), c); err != nil {
			e.retry(c, err)
		}
	})
}

// retry treats a restart that failed like a run that ended at once.
func (e *Engine) retry(c *ctr, cause error) {
	e.log.Warn("container not restarted", "container", c.id[:12], "err", cause)
	c.mu.Lock()
	delay, again := c.next(c.rec.State.ExitCode, 0)
	c.mu.Unlock()
	if !again {
		return
	}
	err := e.update(c, func(rec *record) {
		rec.State.Status = container.StateRestarting
		rec.Restarts++
	})
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	e.restartLater(c, delay)
}

// dropRestart calls off a restart that is due.
func (c *ctr) dropRestart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
}
