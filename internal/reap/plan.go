// Package reap forgets what is over: tasks beyond the history that users want to
// see, tasks that were to be removed and have ended, those of nodes that are gone
// for good, and networks that wait for their last task. The leader runs it. It
// deletes, and gives tasks their last states; it never creates anything.
package reap

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// OrphanAfter is how long a node is down before its tasks are given up.
const OrphanAfter = 24 * time.Hour

const defaultHistory = 5

// memory is what a pass need not look at again.
type memory struct {
	memo     *pass.Memo
	changes  pass.Changes
	nodes    []*cluster.Node
	services []*cluster.Service
	again    time.Time
}

func newMemory() *memory { return &memory{memo: pass.NewMemo()} }

// Plan returns the writes that forget what is over, and when to look again. With
// a memory it looks only at what has changed since the last pass.
func (m *memory) Plan(now time.Time, v store.View) (todo pass.Todo, again time.Time) {
	m.memo.Begin(v)
	p := &planner{now: now, v: v, deleted: map[string]bool{}}
	tasks := v.Tasks()
	look, _ := m.changes.Since(tasks)
	nodes, services := v.Nodes(), v.Services()
	due := !m.again.IsZero() && !now.Before(m.again)
	if due || !slices.Equal(nodes, m.nodes) || !slices.Equal(services, m.services) {
		look, m.nodes, m.services, m.again = tasks, nodes, services, time.Time{}
	}
	for _, t := range look {
		p.task(t)
	}
	m.again = pass.Sooner(m.again, p.again)
	m.memo.Services(now, v, &p.todo, func(s *cluster.Service, of []*cluster.Task) time.Time {
		if p.history(s, of) {
			return now // to be looked at again in the next pass
		}
		return time.Time{}
	})
	for _, n := range v.Networks() {
		p.network(n)
	}
	return p.todo, m.again
}

type planner struct {
	now     time.Time
	v       store.View
	todo    pass.Todo
	again   time.Time
	deleted map[string]bool
}

func (p *planner) task(t *cluster.Task) {
	ended := t.Status.State.Terminal()
	switch {
	case t.Desired == cluster.StateRemove && (ended || t.Status.State < cluster.StateAssigned):
		p.forget(t)
	case t.Attach != nil && ended:
		p.forget(t) // a plain container has no history
	case !ended && p.lost(t):
		p.todo.Add(store.SetStatus(t.ID, cluster.Status{
			State: cluster.StateOrphaned, Message: "task's node is gone", ContainerID: t.Status.ContainerID,
		}))
	case t.Attach == nil && t.Desired != cluster.StateRemove && p.v.Service(t.ServiceID) == nil:
		c := *t
		c.Desired = cluster.StateRemove
		p.todo.Add(store.UpdateTask(&c))
	}
}

// lost reports whether a task's node will not be heard of again: it was removed,
// or has been down for too long.
func (p *planner) lost(t *cluster.Task) bool {
	if t.NodeID == "" {
		return false
	}
	n := p.v.Node(t.NodeID)
	if n == nil {
		return true
	}
	if n.Status.State != swarm.NodeStateDown || n.Status.Since.IsZero() {
		return false
	}
	if at := n.Status.Since.Add(OrphanAfter); at.After(p.now) {
		p.again = pass.Sooner(p.again, at)
		return false
	}
	return true
}

func (p *planner) forget(t *cluster.Task) {
	if !p.deleted[t.ID] {
		p.deleted[t.ID] = true
		p.todo.Add(store.DeleteTask(t))
	}
}

// history keeps as many tasks of a place as users want to see, the wanted one
// included; the oldest that have ended go first. It reports whether any went.
func (p *planner) history(s *cluster.Service, tasks []*cluster.Task) (went bool) {
	limit := p.limit(s)
	if limit < 0 {
		return false
	}
	for _, pl := range cluster.Places(tasks) {
		keep := limit
		if len(pl.Wanted()) == 0 {
			keep = max(keep, 1) // the last one says how the place ended
		}
		over := p.remaining(pl) - keep
		for _, t := range pl.Tasks[:len(pl.Tasks)-1] {
			if over > 0 && t.Desired > cluster.StateRunning && t.Status.State.Terminal() && !p.deleted[t.ID] {
				p.forget(t)
				over, went = over-1, true
			}
		}
	}
	return went
}

func (p *planner) remaining(pl cluster.Place) (n int) {
	for _, t := range pl.Tasks {
		if !p.deleted[t.ID] {
			n++
		}
	}
	return n
}

// limit is how many tasks of a place are kept; negative: all. With a limit of
// attempts it is one more, for they are counted from the history; and while an
// update is under way it is not low, for failures are seen there too.
func (p *planner) limit(s *cluster.Service) int {
	if r := cluster.RestartOf(s.Spec); r.MaxAttempts > 0 {
		return r.MaxAttempts + 1
	}
	limit := defaultHistory
	if c := p.v.Cluster(); c != nil && c.Spec != nil && c.Spec.Orchestration.TaskHistoryRetentionLimit != nil {
		limit = int(*c.Spec.Orchestration.TaskHistoryRetentionLimit)
	}
	if u := s.Update; limit >= 0 && u != nil &&
		(u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted) {
		limit = max(limit, defaultHistory)
	}
	return limit
}

// network removes a network that users removed, when no task is left in it.
func (p *planner) network(n *cluster.Network) {
	if !n.PendingDelete {
		return
	}
	for _, t := range p.v.TasksIn(n.ID) {
		if !t.Status.State.Terminal() {
			return
		}
	}
	p.todo.Add(store.DeleteNetwork(n))
}
