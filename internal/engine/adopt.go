package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// adopt takes over what an earlier engine left: running containers go on, those
// that ended are dealt with as if it were just now, and those that are to run
// are started.
func (e *Engine) adopt(ctx context.Context) error {
	recs, kept, err := e.loadRecords()
	if err != nil {
		return err
	}
	var running []string
	after := map[*ctr]func(){} // what is left to do once networks know who runs
	for _, rec := range recs {
		c := newCtr(rec)
		e.ctrs[rec.ID] = c
		if _, taken := e.names[rec.Name]; taken {
			e.log.Warn("two containers have one name", "name", rec.Name)
		}
		e.names[rec.Name] = rec.ID
		alive, then := e.adoptOne(ctx, c)
		if alive {
			running = append(running, rec.ID)
		}
		if then != nil {
			after[c] = then
		}
	}
	if err := e.adoptVolumes(ctx, running); err != nil {
		e.log.Warn("volumes of running containers", "err", err)
	}
	if e.cfg.Networks != nil {
		if err := e.cfg.Networks.Adopt(ctx, running); err != nil {
			e.log.Warn("networks of running containers", "err", err)
		}
	}
	for _, then := range after {
		then()
	}
	return e.sweep(ctx, kept)
}

// adoptOne finds out what became of one container. It returns whether it runs
// and what is to be done about it.
func (e *Engine) adoptOne(ctx context.Context, c *ctr) (alive bool, then func()) {
	rec := c.view()
	switch {
	case rec.State.running():
	case rec.State.Status == container.StateRemoving, rec.State.Status == container.StateDead:
		return false, func() { e.removeLater(c) }
	case e.begun(rec):
		return false, e.halfStarted(c)
	case rec.State.Status == container.StateRestarting:
		return false, func() { e.restartLater(c, firstDelay) }
	case rec.HostConfig.AutoRemove && rec.State.Status == container.StateExited:
		return false, func() { e.removeLater(c) }
	case startsAtBoot(rec):
		return false, func() { e.startLater(c) }
	default:
		return false, nil
	}
	shim, ok := e.pool.Hold(rec.Shim)
	r := newRun(nil)
	c.run = r
	if ok {
		st, err := shim.Tasks.State(ctx, &taskapi.StateRequest{ID: c.id})
		switch {
		case err == nil && st.Status != task.Status_STOPPED:
			r.shim = shim
			return true, func() { e.takeOver(c, r, st) }
		case err == nil:
			r.shim = shim
			end := stdio.Exit{Code: int(st.ExitStatus), At: st.ExitedAt.AsTime()}
			return false, func() { e.finish(c, r, end) }
		}
		e.pool.Release(ctx, shim)
	}
	return false, func() { e.finish(c, r, e.lostEnd(rec)) }
}

// begun reports whether the last daemon began to start a container that does not
// run by its record.
func (e *Engine) begun(rec record) bool {
	_, err := os.Stat(e.runDir(rec.ID))
	return err == nil
}

// halfStarted deals with a container whose start the last daemon did not live to
// record: what there is of it is ended, and it counts as killed.
func (e *Engine) halfStarted(c *ctr) func() {
	r := newRun(nil)
	c.run = r
	c.rec.RunDir = e.runDir(c.id)
	name, err := os.ReadFile(filepath.Join(c.rec.RunDir, shimFile))
	if shim, ok := e.pool.Hold(string(name)); err == nil && ok {
		r.shim = shim
	}
	return func() {
		e.work.Go(func() {
			ctx := context.WithoutCancel(e.ctx)
			e.killHalf(ctx, c, r)
			e.ended(ctx, c, r, stdio.Exit{Code: 137, At: time.Now().UTC()})
		})
	}
}

// How long a shim is given to end what an earlier daemon had it make, and, where
// it knows of nothing, to have come to it: the order may have been on its way.
const (
	halfKillTime = 5 * time.Second
	halfAskAgain = 50 * time.Millisecond
	halfAsks     = 6
)

// killHalf kills what a shim has made of a container, so that it can be deleted.
func (e *Engine) killHalf(ctx context.Context, c *ctr, r *run) {
	if r.shim == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, halfKillTime)
	defer cancel()
	for range halfAsks {
		_, err := r.shim.Tasks.Kill(ctx, &taskapi.KillRequest{ID: c.id, Signal: uint32(syscall.SIGKILL), All: true})
		if !errdefs.IsNotFound(native(err)) {
			_, _ = r.shim.Tasks.Wait(ctx, &taskapi.WaitRequest{ID: c.id}) // clear says what is wrong
			return
		}
		select {
		case <-time.After(halfAskAgain):
		case <-e.ctx.Done():
			return
		}
	}
}

// adoptVolumes tells the volumes which running containers have them: the last to
// give one back unmounts it, whoever had it before this daemon.
func (e *Engine) adoptVolumes(ctx context.Context, running []string) error {
	if e.cfg.Volumes == nil {
		return nil
	}
	holders := map[string][]string{}
	for _, id := range running {
		for _, m := range e.ctrs[id].view().Mounts {
			if m.Type == mount.TypeVolume {
				holders[m.Name] = append(holders[m.Name], id)
			}
		}
	}
	return e.cfg.Volumes.Adopt(ctx, holders)
}

// startsAtBoot reports whether a container that had ended before the daemon went
// is started when the daemon comes back: as Docker does, one of "always" even if
// a user stopped it.
func startsAtBoot(rec record) bool {
	p := rec.HostConfig.RestartPolicy
	return !rec.Swarm && rec.State.Status == container.StateExited && (p.IsAlways() || p.IsUnlessStopped() && !rec.State.UserStop)
}

func (e *Engine) startLater(c *ctr) {
	err := e.update(c, func(rec *record) { rec.State.Status = container.StateRestarting })
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	e.restartLater(c, 0)
}

// takeOver goes on with a container that runs.
func (e *Engine) takeOver(c *ctr, r *run, st *taskapi.StateResponse) {
	err := e.update(c, func(rec *record) {
		rec.State.Pid = int(st.Pid)
		rec.State.Status = container.StateRunning
		if st.Status == task.Status_PAUSED {
			rec.State.Status = container.StatePaused
		}
	})
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	e.log.Info("container adopted", "container", c.id[:12], "pid", st.Pid)
	e.watch(c, r)
	e.checkHealth(c, r)
}

// finish deals with a container that ended while no daemon was there. After a
// reboot unless-stopped and always start it again.
func (e *Engine) finish(c *ctr, r *run, end stdio.Exit) {
	e.work.Go(func() { e.ended(context.WithoutCancel(e.ctx), c, r, end) })
}

// sweepSnapshots removes the snapshots of containers that are not kept.
func (e *Engine) sweepSnapshots(ctx context.Context, kept map[string]bool) error {
	sn := e.layers.Client.SnapshotService(e.layers.Snapshotter)
	var stale []string
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && info.Labels[ownerLabel] == e.cfg.DataRoot && isContainerID(info.Name) && !kept[info.Name] {
			stale = append(stale, info.Name)
		}
		return nil
	})
	var errs []error
	for _, name := range stale {
		if err := sn.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}
