// Package rollout brings a service's tasks to its present spec: in batches, with
// a pause between them, watching the new ones, and back to the previous spec
// when too many fail and the user wants that. The leader runs it. It replaces
// tasks whose spec is an old one and writes the service's update status (and,
// rolling back, its spec); how many tasks there are and what follows one that
// ended is services'.
//
// Everything it decides by is in the store, so that an update goes on under the
// next leader. The one exception is when a task that has failed had begun to run:
// the loop remembers it, and where nobody does, an early end counts as a failure.
//
// Whoever writes a new spec (control) clears the update status, or sets it to
// rollback_started with the message "manually requested rollback". A paused
// update stays until then.
package rollout

import (
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// ProgressDeadline is how long a new task may take to run before it counts as a
// failure: an update does not wait for ever on a task that never runs.
const ProgressDeadline = 10 * time.Minute

// The words that the update status shows, Docker's.
const (
	updating      = "update in progress"
	updated       = "update completed"
	rolledBack    = "rollback completed"
	pausedFor     = "update paused due to failure or early termination of task %s"
	rollingBack   = "update rolled back due to failure or early termination of task %s"
	backPausedFor = "rollback paused due to failure or early termination of task %s"
)

// Plan returns the writes that take every update a step further, and when to look
// again. began holds, by task, since when a task served; Plan adds what it sees.
// memo (nil for none) spares it what has not changed.
func Plan(now time.Time, v store.View, began map[string]time.Time, memo *pass.Memo) (todo pass.Todo, again time.Time) {
	memo.Begin(v)
	p := &planner{now: now, v: v, began: began}
	again = memo.Services(now, v, &p.todo, p.service)
	return p.todo, again
}

type planner struct {
	now   time.Time
	v     store.View
	began map[string]time.Time
	todo  pass.Todo
	again time.Time
}

// rollout is the pass over one service.
type rollout struct {
	*planner
	svc      *cluster.Service
	cfg      swarm.UpdateConfig
	places   []cluster.Place
	outdated cluster.Outdated
}

// service plans one service and returns when to look at it again.
func (p *planner) service(s *cluster.Service, tasks []*cluster.Task) time.Time {
	p.again = time.Time{}
	if s.Allocated != s.SpecVersion || s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil {
		return p.again
	}
	r := &rollout{
		planner: p, svc: s, cfg: configOf(s), places: cluster.Places(tasks),
		outdated: cluster.NewOutdated(s, p.v),
	}
	dirty := r.survey()
	switch state(s) {
	case swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused:
	case swarm.UpdateStateUpdating, swarm.UpdateStateRollbackStarted:
		r.step(dirty)
	default:
		if slices.ContainsFunc(dirty, func(d dirtyPlace) bool { return !d.frozen }) {
			r.status(swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &p.now, Message: updating})
		}
	}
	return p.again
}

func state(s *cluster.Service) swarm.UpdateState {
	if s.Update == nil {
		return ""
	}
	return s.Update.State
}

// configOf returns how to go about the update or rollback.
func configOf(s *cluster.Service) swarm.UpdateConfig {
	if st := state(s); st == swarm.UpdateStateRollbackStarted || st == swarm.UpdateStateRollbackPaused {
		return cluster.UpdateOf(s.Spec.RollbackConfig)
	}
	return cluster.UpdateOf(s.Spec.UpdateConfig)
}

// dirtyPlace is a place where no task of the present spec is.
type dirtyPlace struct {
	cluster.Place
	wanted []*cluster.Task
	frozen bool // its node is not to be touched now
	serves bool
}

// survey finds the dirty places. Where a new task and old ones stand side by
// side it stops the old ones as soon as the order of the update allows.
func (r *rollout) survey() (dirty []dirtyPlace) {
	for _, pl := range r.places {
		d := dirtyPlace{Place: pl}
		clean, cleanServes := false, false
		for _, t := range pl.Wanted() {
			if r.outdated.Has(t) {
				d.wanted = append(d.wanted, t)
				d.serves = d.serves || t.Status.Serving
				d.frozen = d.frozen || r.frozen(t)
			} else {
				clean, cleanServes = true, cleanServes || t.Status.Serving
			}
		}
		if clean {
			if cleanServes || r.cfg.Order == swarm.UpdateOrderStopFirst {
				r.stop(d.wanted)
			}
			continue
		}
		if last := pl.Finished(r.policy); len(d.wanted) > 0 || last != nil && r.outdated.Has(last) {
			d.frozen = d.frozen || last != nil && last.Slot == 0 && r.frozen(last)
			dirty = append(dirty, d)
		}
	}
	return dirty
}

func (r *rollout) policy(t *cluster.Task) cluster.Restart {
	if sv := r.v.SpecOf(t.ServiceID, t.SpecVersion); sv != nil {
		return cluster.RestartOf(sv.Spec)
	}
	return cluster.RestartOf(nil)
}

// frozen reports whether a task is to be left alone: nobody knows whether its
// node lives, or users paused the node that it belongs to.
func (r *rollout) frozen(t *cluster.Task) bool {
	n := r.v.Node(t.NodeID)
	if n == nil {
		return t.NodeID != "" // services moves it
	}
	return n.Status.State != swarm.NodeStateReady || n.Draining() || t.Slot == 0 && n.Paused()
}

func (r *rollout) stop(tasks []*cluster.Task) {
	for _, t := range tasks {
		c := *t
		c.Desired = cluster.StateShutdown
		r.todo.Add(store.UpdateTask(&c))
	}
}

// status writes the update status.
func (r *rollout) status(st swarm.UpdateStatus) {
	c := *r.svc
	c.Update = &st
	r.todo.Add(store.UpdateService(&c))
}

// step takes an update that is under way further: it stops at too many failures,
// replaces as many tasks as may be under way at once, or completes.
func (r *rollout) step(dirty []dirtyPlace) {
	f := r.progress()
	if f.failed != nil && r.tooMany(f.failures, f.touched+len(dirty)) && r.act(f.failed) {
		return
	}
	free := len(dirty)
	if r.cfg.Parallelism > 0 {
		free = int(r.cfg.Parallelism) - f.busy
	}
	slices.SortStableFunc(dirty, func(a, b dirtyPlace) int { // where nothing serves there is nothing to lose
		switch {
		case a.serves == b.serves:
			return 0
		case b.serves:
			return -1
		}
		return 1
	})
	waiting := false
	for _, d := range dirty {
		if d.frozen {
			waiting = waiting || !r.pausedNode(d)
			continue
		}
		waiting = true
		if free > 0 {
			free--
			r.replace(d)
		}
	}
	if waiting || f.unsettled {
		return
	}
	if f.watchUntil.After(r.now) {
		r.again = pass.Sooner(r.again, f.watchUntil)
		return
	}
	r.complete()
}

func (r *rollout) tooMany(failures, total int) bool {
	return total > 0 && float32(failures)/float32(total) > r.cfg.MaxFailureRatio
}

// pausedNode reports whether a place is frozen because users paused its node:
// the update does not wait for that.
func (r *rollout) pausedNode(d dirtyPlace) bool {
	n := r.v.Node(d.Key.NodeID)
	return d.Key.Slot == 0 && n != nil && n.Paused()
}

// replace stops the tasks of a place and creates one of the present spec, or
// creates it beside them where it is to start first.
func (r *rollout) replace(d dirtyPlace) {
	var group []store.Change
	desired := cluster.StateRunning
	for _, t := range d.wanted {
		c := *t
		if r.cfg.Order != swarm.UpdateOrderStartFirst || t.Status.State != cluster.StateRunning {
			c.Desired = cluster.StateShutdown
		}
		// Written also where nothing changes: it ties the new task to the old one,
		// so that services cannot replace the same one at the same time.
		group = append(group, store.UpdateTask(&c))
		if c.Desired == cluster.StateShutdown && t.MayBeAlive() {
			desired = cluster.StateReady // services starts it when the old one has ended
		}
	}
	for _, t := range d.Tasks {
		if t.Desired > cluster.StateRunning && t.MayBeAlive() && !r.v.Node(t.NodeID).Down() {
			desired = cluster.StateReady
		}
	}
	if len(d.wanted) == 0 {
		group = append(group, store.UpdateTask(d.Tasks[len(d.Tasks)-1])) // tied to the one that finished
	}
	group = append(group, store.CreateTask(cluster.NewTask(r.svc, d.Key, desired, time.Time{})))
	r.todo.Add(group...)
}

// act does what users want on failure; false where that is to go on.
func (r *rollout) act(failed *cluster.Task) bool {
	back := state(r.svc) == swarm.UpdateStateRollbackStarted
	st := *r.svc.Update
	switch r.cfg.FailureAction {
	case swarm.UpdateFailureActionContinue:
		return false
	case swarm.UpdateFailureActionRollback:
		if !back && r.svc.Previous != nil {
			r.rollBack(failed)
			return true
		}
		st.State, st.Message = swarm.UpdateStatePaused, fmt.Sprintf(pausedFor, failed.ID)
		if back { // a rollback is never rolled back
			st.State, st.Message = swarm.UpdateStateRollbackPaused, fmt.Sprintf(backPausedFor, failed.ID)
		}
	default:
		st.State, st.Message = swarm.UpdateStatePaused, fmt.Sprintf(pausedFor, failed.ID)
		if back {
			st.State = swarm.UpdateStateRollbackPaused
		}
	}
	r.status(st)
	return true
}

// rollBack makes the previous spec the present one.
func (r *rollout) rollBack(failed *cluster.Task) {
	c := *r.svc
	c.Spec, c.Previous = r.svc.Previous, nil
	c.RegistryAuth, c.PreviousAuth = r.svc.PreviousAuth, ""
	c.Update = &swarm.UpdateStatus{
		State: swarm.UpdateStateRollbackStarted, StartedAt: &r.now, Message: fmt.Sprintf(rollingBack, failed.ID),
	}
	r.todo.Add(store.UpdateService(&c))
}

func (r *rollout) complete() {
	st := *r.svc.Update
	st.CompletedAt = &r.now
	st.State, st.Message = swarm.UpdateStateCompleted, updated
	if state(r.svc) == swarm.UpdateStateRollbackStarted {
		st.State, st.Message = swarm.UpdateStateRollbackCompleted, rolledBack
	}
	r.status(st)
}
