// Package services decides which tasks should exist: as many as a replicated
// service has replicas, one on each fitting node for a global one, and another
// where one ended or its node was lost. It creates tasks with the service's
// present spec and lets them start; which of the living ones are replaced
// because their spec is an old one is rollout's, where they run is schedule's.
// The leader runs it; it never touches nodes, addresses or specs.
//
// Services and rollout cannot fight: whoever replaces a task stops the old one
// and creates the new one in one entry that names the version of the old one it
// read, so only one of them can replace a given task. Only services creates a
// task where no wanted one was, and only services lets one that waits (desired
// READY) start.
package services

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// rejectedErr is Docker's for a task that no longer fits its node.
const rejectedErr = "assigned node no longer meets constraints"

// Plan returns the writes that bring every service to its wanted tasks, and when
// to look again. memo (nil for none) spares it what has not changed.
func Plan(now time.Time, v store.View, memo *pass.Memo) (todo pass.Todo, again time.Time) {
	memo.Begin(v)
	p := &planner{now: now, v: v, constraints: map[*swarm.ServiceSpec]matcher{}}
	p.misfits = p.overcommitted(memo)
	again = memo.Services(now, v, &p.todo, p.service)
	return p.todo, again
}

// planner is one pass.
type planner struct {
	now   time.Time
	v     store.View
	todo  pass.Todo
	again time.Time
	// misfits are tasks whose node has less than what was promised to them.
	misfits     map[string]bool
	constraints map[*swarm.ServiceSpec]matcher
}

// service plans one service and returns when to look at it again.
func (p *planner) service(svc *cluster.Service, tasks []*cluster.Task) time.Time {
	p.again = time.Time{}
	mode := svc.Spec.Mode
	if mode.ReplicatedJob != nil || mode.GlobalJob != nil {
		return p.again // control refuses jobs as yet
	}
	s := &servicePlan{
		planner: p, svc: svc, places: cluster.Places(tasks),
		changed: map[string]bool{}, outdated: cluster.NewOutdated(svc, p.v),
	}
	if mode.Global != nil {
		s.global()
		return p.again
	}
	want := 1
	if mode.Replicated != nil && mode.Replicated.Replicas != nil {
		want = int(*mode.Replicated.Replicas)
	}
	s.replicated(want)
	return p.again
}

// servicePlan is the pass over one service.
type servicePlan struct {
	*planner
	svc    *cluster.Service
	places []cluster.Place
	// changed are the tasks this pass already writes: a second write of one would
	// be stale.
	changed  map[string]bool
	outdated cluster.Outdated
}

// allocated reports whether tasks of the present spec may be created.
func (s *servicePlan) allocated() bool { return s.svc.Allocated == s.svc.SpecVersion }

func (s *servicePlan) spec(t *cluster.Task) *swarm.ServiceSpec {
	if sv := s.v.SpecOf(t.ServiceID, t.SpecVersion); sv != nil {
		return sv.Spec
	}
	return s.svc.Spec
}

func (s *servicePlan) policy(t *cluster.Task) cluster.Restart { return cluster.RestartOf(s.spec(t)) }

func (s *servicePlan) replicated(want int) {
	var taken []cluster.Place
	for _, pl := range s.places {
		if pl.Key.Slot == 0 {
			s.remove(pl) // left over from another mode
			continue
		}
		if len(pl.Wanted()) > 0 || pl.Finished(s.policy) != nil {
			taken = append(taken, pl)
		}
	}
	if len(taken) > want {
		victims := s.victims(taken)[:len(taken)-want]
		for _, pl := range victims {
			s.remove(pl)
		}
		taken = slices.DeleteFunc(taken, func(pl cluster.Place) bool {
			return slices.ContainsFunc(victims, func(o cluster.Place) bool { return o.Key == pl.Key })
		})
	}
	used := map[int]bool{}
	for _, pl := range taken {
		used[pl.Key.Slot] = true
		s.keep(pl)
	}
	for slot := 1; len(used) < want; slot++ {
		if !used[slot] {
			used[slot] = true
			s.fill(cluster.SlotKey{Slot: slot})
		}
	}
}

// victims orders places by who goes first when there are too many: those where
// nothing runs yet, then those on the nodes that hold most of the service.
func (s *servicePlan) victims(taken []cluster.Place) []cluster.Place {
	type candidate struct {
		pl      cluster.Place
		running bool
		nth     int // the place is the nth of the service on its node
	}
	onNode := map[string]int{}
	cs := make([]candidate, 0, len(taken))
	for _, pl := range taken {
		c := candidate{pl: pl}
		for _, t := range pl.Wanted() {
			n := s.v.Node(t.NodeID)
			if t.Status.State == cluster.StateRunning && !n.Down() && !n.Draining() {
				c.running = true
				onNode[t.NodeID]++
				c.nth = onNode[t.NodeID]
				break
			}
		}
		cs = append(cs, c)
	}
	slices.SortStableFunc(cs, func(a, b candidate) int {
		if a.running != b.running {
			if b.running {
				return -1
			}
			return 1
		}
		return cmp.Or(-cmp.Compare(a.nth, b.nth), -cmp.Compare(a.pl.Key.Slot, b.pl.Key.Slot))
	})
	out := make([]cluster.Place, len(cs))
	for i := range cs {
		out[i] = cs[i].pl
	}
	return out
}

// remove stops and forgets every task of a place, its history too.
func (s *servicePlan) remove(pl cluster.Place) {
	for _, t := range pl.Tasks {
		if t.Desired != cluster.StateRemove {
			s.want(t, cluster.StateRemove)
		}
	}
}

// fill creates a task where none is wanted. It waits for what still stops there.
func (s *servicePlan) fill(key cluster.SlotKey) {
	if !s.allocated() {
		return
	}
	desired := cluster.StateRunning
	for _, pl := range s.places {
		if pl.Key == key && slices.ContainsFunc(pl.Tasks, s.stillStops) {
			desired = cluster.StateReady
		}
	}
	s.todo.Add(store.CreateTask(cluster.NewTask(s.svc, key, desired, time.Time{})))
}

func (s *servicePlan) global() {
	at := map[string]cluster.Place{}
	for _, pl := range s.places {
		if pl.Key.NodeID == "" {
			s.remove(pl)
			continue
		}
		at[pl.Key.NodeID] = pl
		if s.v.Node(pl.Key.NodeID) == nil {
			s.remove(pl)
		}
	}
	constraints := s.parsed(s.svc.Spec)
	for _, n := range s.v.Nodes() {
		key := cluster.SlotKey{NodeID: n.ID}
		pl, found := at[n.ID]
		switch {
		case n.Down() || n.Draining():
			s.stop(pl)
		case n.Status.State != swarm.NodeStateReady || n.Paused():
			s.start(pl) // left alone, but for what already waits there
		case !constraints.match(n):
			s.remove(pl)
		case found && (len(pl.Wanted()) > 0 || pl.Finished(s.policy) != nil):
			s.keep(pl)
		default:
			s.fill(key)
		}
	}
}

// stop tells the wanted tasks of a place to end, without replacement.
func (s *servicePlan) stop(pl cluster.Place) {
	for _, t := range pl.Wanted() {
		s.want(t, cluster.StateShutdown)
	}
}

// matcher is a list of constraints, or one that nothing matches because it could
// not be read.
type matcher struct {
	cs  []cluster.Constraint
	bad bool
}

func (m matcher) match(n *cluster.Node) bool { return !m.bad && cluster.MatchAll(m.cs, n) }

func (p *planner) parsed(spec *swarm.ServiceSpec) matcher {
	m, known := p.constraints[spec]
	if !known {
		cs, err := cluster.ParseConstraints(cluster.ConstraintsOf(spec))
		m = matcher{cs, err != nil}
		p.constraints[spec] = m
	}
	return m
}

// want adds a write that changes what is wanted of a task.
func (s *servicePlan) want(t *cluster.Task, d cluster.State) {
	if !s.changed[t.ID] {
		s.todo.Add(s.desire(t, d))
	}
}

// desire is the write that changes what is wanted of a task.
func (s *servicePlan) desire(t *cluster.Task, d cluster.State) store.Change {
	s.changed[t.ID] = true
	c := *t
	c.Desired = d
	return store.UpdateTask(&c)
}

// overcommitted finds the tasks for which their node no longer has room: in the
// order in which they came, each takes what it reserves while there is enough.
func (p *planner) overcommitted(memo *pass.Memo) map[string]bool {
	out := map[string]bool{}
	for _, n := range p.v.Nodes() {
		if n.Down() || n.Draining() || n.Description == nil || !memo.NodeChanged(n) {
			continue // the scheduler does not promise too much: a node must have shrunk
		}
		left := n.Description.Resources
		for _, t := range p.reserving(n.ID) {
			r := cluster.ReservationsOf(p.v.SpecOf(t.ServiceID, t.SpecVersion).Spec)
			if r.NanoCPUs > left.NanoCPUs || r.MemoryBytes > left.MemoryBytes {
				out[t.ID] = true
				memo.DoubtNode(n) // until it is seen to be put right
				continue
			}
			left.NanoCPUs -= r.NanoCPUs
			left.MemoryBytes -= r.MemoryBytes
		}
	}
	return out
}

// reserving lists the node's living tasks that reserve something, oldest first.
func (p *planner) reserving(nodeID string) []*cluster.Task {
	var out []*cluster.Task
	for _, t := range p.v.TasksOn(nodeID) {
		if t.Desired > cluster.StateRunning || !t.MayBeAlive() {
			continue
		}
		sv := p.v.SpecOf(t.ServiceID, t.SpecVersion)
		if sv == nil {
			continue
		}
		if r := cluster.ReservationsOf(sv.Spec); r.NanoCPUs > 0 || r.MemoryBytes > 0 {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b *cluster.Task) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}
