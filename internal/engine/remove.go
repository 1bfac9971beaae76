package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
)

// Remove removes a container and what belongs to it.
func (e *Engine) Remove(ctx context.Context, ref string, opts RemoveOptions) error {
	if opts.Link {
		return cluster.NotImplementedf("legacy links cannot be removed")
	}
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if opts.Force {
		if err := e.killForRemoval(ctx, c); err != nil {
			return err
		}
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	return e.remove(e.whole(ctx), c, opts)
}

// killForRemoval ends a container without waiting for whoever holds it: a stop
// with a long grace must not keep rm -f waiting.
func (e *Engine) killForRemoval(ctx context.Context, c *ctr) error {
	c.dropRestart()
	rec := c.view()
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if !rec.State.running() || r == nil {
		return nil
	}
	c.mu.Lock()
	c.rec.State.UserStop = true // in memory alone: the record is to go
	c.mu.Unlock()
	if rec.State.Status == container.StatePaused {
		if err := e.thaw(e.whole(ctx), c); err != nil {
			return err
		}
	}
	return e.killRun(ctx, c, r)
}

// remove removes a container that the caller holds.
func (e *Engine) remove(ctx context.Context, c *ctr, opts RemoveOptions) error {
	rec := c.view()
	if c.isRemoved() {
		return cluster.NotFoundf("No such container: %s", c.id)
	}
	switch {
	case rec.State.Status == container.StatePaused:
		return cluster.Conflictf("cannot remove container \"/%s\": container is paused and must be unpaused first", rec.Name)
	case rec.State.running():
		if !opts.Force {
			return cluster.Conflictf("cannot remove container \"/%s\": container is running: stop the container before removing or force remove", rec.Name)
		}
		// It was started again while we waited for it.
		if err := e.killForRemoval(ctx, c); err != nil {
			return err
		}
	case rec.State.Status == container.StateRestarting && !opts.Force:
		return cluster.Conflictf("cannot remove container \"/%s\": container is restarting: stop the container before removing or force remove", rec.Name)
	}
	c.dropRestart()
	e.awaitEnd(c)
	purge := opts.Volumes || rec.HostConfig.AutoRemove
	err := e.update(c, func(r *record) {
		// It holds nothing any more: not its volumes either. Should the daemon die
		// now, the next one goes on with it.
		r.State.Status, r.State.Purge = container.StateRemoving, purge
	})
	if err != nil { // a full disk is no reason to keep what fills it
		e.log.Warn("removal not written down", "container", c.id[:12], "err", err)
	}
	rec = c.view()
	if err := e.unbuild(ctx, rec, purge); err != nil {
		_ = e.update(c, func(r *record) { r.State.Status, r.State.Error = container.StateDead, err.Error() })
		return wrap(c.id, err)
	}
	e.mu.Lock()
	delete(e.ctrs, c.id)
	for name, id := range e.names {
		if id == c.id {
			delete(e.names, name)
		}
	}
	e.mu.Unlock()
	e.forgetExecs(c.id)
	e.emit(rec, events.ActionDestroy, nil)
	c.mu.Lock()
	c.removed = true
	c.wake()
	c.mu.Unlock()
	c.failPending(cluster.NotFoundf("No such container: %s", c.id))
	return nil
}

// removeLater removes a container of --rm that has ended, or one whose removal an
// earlier daemon did not finish.
func (e *Engine) removeLater(c *ctr) {
	e.work.Go(func() {
		// Whoever answers which containers have a volume cannot before New is done.
		select {
		case <-e.opened:
		case <-e.ctx.Done():
		}
		if c.lock(e.ctx) != nil {
			return // the next engine on this data does it
		}
		defer c.unlock()
		if st := c.view().State; st.running() || st.Status == container.StateRestarting {
			return // it was started again
		}
		err := e.remove(e.whole(e.ctx), c, RemoveOptions{Volumes: c.view().State.Purge})
		if err != nil && !errdefs.IsNotFound(err) {
			e.log.Warn("container not removed", "container", c.id[:12], "err", err)
		}
	})
}

// Prune removes the stopped containers that pass the filters (label, label!,
// until), as docker container prune does.
func (e *Engine) Prune(ctx context.Context, f filters.Filters) (container.PruneReport, error) {
	report := container.PruneReport{ContainersDeleted: []string{}}
	until, err := pruneUntil(f)
	if err != nil {
		return report, err
	}
	for _, c := range e.all() {
		rec := c.view()
		switch rec.State.Status {
		case container.StateCreated, container.StateExited, container.StateDead:
		default:
			continue
		}
		if !until.IsZero() && rec.Created.After(until) || !filters.Pruned(f, rec.Config.Labels) {
			continue
		}
		size := e.size(rec)
		if err := e.Remove(ctx, c.id, RemoveOptions{}); err != nil {
			if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
				continue
			}
			return report, err
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.id)
		report.SpaceReclaimed += uint64(max(size, 0))
	}
	e.Publish(events.ContainerEventType, events.ActionPrune, events.Actor{Attributes: map[string]string{"reclaimed": itoa(int(report.SpaceReclaimed))}})
	return report, nil
}

// sweep removes what belongs to no container that is kept: bundles, snapshots and
// directories of containers that were half made or half removed.
func (e *Engine) sweep(ctx context.Context, kept map[string]bool) error {
	bundles := map[string]bool{}
	for id := range kept {
		bundles[id[:min(len(id), 16)]] = true
	}
	errs := []error{
		eachOther(filepath.Join(e.cfg.ExecRoot, "c"), bundles, removeBundle),
		e.sweepSnapshots(ctx, kept),
		eachOther(filepath.Join(e.cfg.DataRoot, "containers"), kept, func(path string) error {
			if !isContainerID(filepath.Base(path)) {
				return nil // not ours
			}
			return os.RemoveAll(path)
		}),
	}
	return errors.Join(errs...)
}

// eachOther calls remove with the path of each entry of dir that is not kept.
func eachOther(dir string, kept map[string]bool, remove func(path string) error) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, entry := range entries {
		if !kept[entry.Name()] {
			errs = append(errs, remove(filepath.Join(dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
