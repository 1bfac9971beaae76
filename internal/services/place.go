package services

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// verdict is what has become of a wanted task.
type verdict int

const (
	fine     verdict = iota
	ended            // it runs no more, though it was wanted
	stranded         // its node is down, gone or drained: it is wanted elsewhere
	leaving          // its node is drained and it stays until its replacement serves
	misfit           // its node no longer is what it asked for
)

func (s *servicePlan) judge(t *cluster.Task) verdict {
	if t.Status.State == cluster.StateOrphaned {
		return stranded
	}
	n := s.v.Node(t.NodeID)
	placed := t.NodeID != "" && t.Slot > 0
	switch {
	case t.Status.State.Terminal():
		return ended
	case placed && n.Down():
		return stranded
	case placed && n.Draining() && t.Status.State == cluster.StateRunning && s.startFirst():
		return leaving
	case placed && n.Draining():
		return stranded
	case t.NodeID != "" && t.MayBeAlive() && n.Ready() && (s.misfits[t.ID] || !s.parsed(s.spec(t)).match(n)):
		return misfit
	}
	return fine
}

func (s *servicePlan) startFirst() bool {
	u := s.svc.Spec.UpdateConfig
	return u != nil && u.Order == swarm.UpdateOrderStartFirst
}

// keep sees to a place that is to stay taken: it replaces what ended or lost its
// node, removes duplicates, and starts what waits.
func (s *servicePlan) keep(pl cluster.Place) {
	var good, gone, left []*cluster.Task
	verdicts := map[*cluster.Task]verdict{}
	for _, t := range pl.Wanted() {
		verdicts[t] = s.judge(t)
		switch verdicts[t] {
		case fine:
			good = append(good, t)
		case leaving:
			left = append(left, t)
		default:
			gone = append(gone, t)
		}
	}
	s.replace(pl, good, gone, verdicts)
	s.relieve(pl, good, gone, left)
	s.single(good)
	s.start(pl)
}

// replace stops the tasks that are gone and creates one in their stead, unless
// another covers for them or the restart policy leaves it at that.
func (s *servicePlan) replace(pl cluster.Place, good, gone []*cluster.Task, verdicts map[*cluster.Task]verdict) {
	if len(gone) == 0 {
		return
	}
	if !s.allocated() {
		return // nothing may be created yet, and stopping alone would lose the reason
	}
	// One that failed while it waited for its restart delay has not used it up.
	for _, t := range gone {
		if verdicts[t] == ended && t.Desired == cluster.StateReady && t.NotBefore.After(s.now) &&
			s.policy(t).Again(t, pl.Tasks) {
			s.again = pass.Sooner(s.again, t.NotBefore)
			return
		}
	}
	var group []store.Change
	again, delay := false, time.Duration(0)
	for _, t := range gone {
		end := s.desire(t, cluster.StateShutdown)
		if verdicts[t] == misfit { // not ended yet: it holds its host ports and its place until it is
			end.Task.Rejected = rejectedErr
		}
		group = append(group, end)
		if s.covered(t, good) {
			continue
		}
		policy := s.policy(t)
		if verdicts[t] != ended {
			again = true
		} else if policy.Again(t, pl.Tasks) {
			again = true
			// The delay is for tasks that fail, not for hosts that are gone.
			if n := s.v.Node(t.NodeID); !n.Down() && !n.Draining() {
				delay = max(delay, policy.Delay)
			}
		}
	}
	if again {
		group = append(group, store.CreateTask(s.successor(pl, gone, delay)))
	}
	s.todo.Add(group...)
}

// covered reports whether another task of the place already stands in for t.
func (s *servicePlan) covered(t *cluster.Task, good []*cluster.Task) bool {
	if s.outdated.Has(t) {
		return len(good) > 0
	}
	return slices.ContainsFunc(good, func(o *cluster.Task) bool { return !s.outdated.Has(o) })
}

// successor makes the task that takes over a place. It waits, prepared, for the
// delay and for what still stops there.
func (s *servicePlan) successor(pl cluster.Place, gone []*cluster.Task, delay time.Duration) *cluster.Task {
	desired, notBefore := cluster.StateRunning, time.Time{}
	if delay > 0 {
		desired, notBefore = cluster.StateReady, s.now.Add(delay)
	}
	for _, t := range pl.Tasks {
		if s.stillStops(t) || slices.Contains(gone, t) && s.alive(t) {
			desired = cluster.StateReady
		}
	}
	return cluster.NewTask(s.svc, pl.Key, desired, notBefore)
}

// alive reports whether a task may run on a node that is there.
func (s *servicePlan) alive(t *cluster.Task) bool {
	return t.MayBeAlive() && !s.v.Node(t.NodeID).Down()
}

// stillStops reports whether a task that is no longer wanted may still run.
func (s *servicePlan) stillStops(t *cluster.Task) bool {
	return t.Desired > cluster.StateRunning && s.alive(t)
}

// relieve moves tasks off a drained node without a gap, for services whose
// updates start first: the replacement serves before the old one stops.
func (s *servicePlan) relieve(pl cluster.Place, good, gone, left []*cluster.Task) {
	if len(left) == 0 {
		return
	}
	if slices.ContainsFunc(good, func(t *cluster.Task) bool { return t.Status.Serving }) {
		for _, t := range left {
			s.want(t, cluster.StateShutdown)
		}
		return
	}
	if len(good) > 0 || len(gone) > 0 || !s.allocated() {
		return
	}
	// The write of the old one, though it changes nothing, ties the two together:
	// rollout cannot replace the same task at the same time.
	s.todo.Add(s.desire(left[0], left[0].Desired),
		store.CreateTask(cluster.NewTask(s.svc, pl.Key, cluster.StateRunning, time.Time{})))
}

// single stops all but one of the tasks of the present spec in one place. Old
// ones beside a new one are an update under way, and rollout's.
func (s *servicePlan) single(good []*cluster.Task) {
	var clean []*cluster.Task
	for _, t := range good {
		if !s.outdated.Has(t) {
			clean = append(clean, t)
		}
	}
	if len(clean) < 2 {
		return
	}
	best := slices.MinFunc(clean, func(a, b *cluster.Task) int { return int(b.Status.State) - int(a.Status.State) })
	for _, t := range clean {
		if t != best {
			s.want(t, cluster.StateShutdown)
		}
	}
}

// start lets the tasks run that wait at desired READY: their delay has passed,
// and what they replace has ended, is on a node that is down, or had its time.
func (s *servicePlan) start(pl cluster.Place) {
	for _, t := range pl.Wanted() {
		if t.Desired != cluster.StateReady || t.Status.State.Terminal() {
			continue
		}
		at := t.NotBefore
		if slices.ContainsFunc(pl.Tasks, func(o *cluster.Task) bool { return o != t && s.stillStops(o) }) {
			if timeout := t.CreatedAt.Add(cluster.OldTaskTimeout); timeout.After(at) {
				at = timeout
			}
		}
		if at.After(s.now) {
			s.again = pass.Sooner(s.again, at)
			continue
		}
		if judged := s.judge(t); judged == fine {
			s.want(t, cluster.StateRunning)
		}
	}
}
