package schedule

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// stage is a store with a scheduler on it.
type stage struct {
	t     testing.TB
	s     *store.Store
	l     *ledger
	index uint64
	now   time.Time
	tasks int
}

func newStage(t testing.TB) *stage {
	return &stage{t: t, s: store.New(), l: newLedger(), now: time.Unix(1000, 0)}
}

func (g *stage) apply(cs ...store.Change) {
	g.t.Helper()
	if len(cs) == 0 {
		return
	}
	g.index++
	if err := g.s.Apply(g.index, store.Entry{At: g.now, Changes: cs}); err != nil {
		g.t.Fatal(err)
	}
}

// schedule plans and applies, and checks that planning again yields nothing, for
// the ledger that was there and for one made anew.
func (g *stage) schedule() (writes int) {
	g.t.Helper()
	for _, group := range g.l.Plan(g.now, g.s.View()) {
		writes += len(group)
		g.apply(group...)
	}
	if again := g.l.Plan(g.now, g.s.View()); len(again) != 0 {
		g.t.Fatalf("planning again yields %d groups", len(again))
	}
	if again := newLedger().Plan(g.now, g.s.View()); len(again) != 0 {
		g.t.Fatalf("a new leader's plan yields %d groups", len(again))
	}
	return writes
}

func (g *stage) node(id string, change ...func(*cluster.Node)) {
	g.t.Helper()
	n := &cluster.Node{
		ID:   id,
		Spec: &swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive, Annotations: swarm.Annotations{Labels: map[string]string{}}},
		Description: &swarm.NodeDescription{
			Hostname: id, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
			Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30},
		},
		Status: cluster.NodeStatus{State: swarm.NodeStateReady},
	}
	for _, c := range change {
		c(n)
	}
	g.apply(store.CreateNode(n))
}

func (g *stage) changeNode(id string, change func(*cluster.Node)) {
	g.t.Helper()
	c := *g.s.View().Node(id)
	change(&c)
	g.apply(store.UpdateNode(&c))
}

func label(k, v string) func(*cluster.Node) {
	return func(n *cluster.Node) { n.Spec.Labels[k] = v }
}

func (g *stage) service(id string, change ...func(*swarm.ServiceSpec)) {
	g.t.Helper()
	spec := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: id}}
	for _, c := range change {
		c(spec)
	}
	if old := g.s.View().Service(id); old != nil {
		c := *old
		spec.TaskTemplate.ForceUpdate = old.Spec.TaskTemplate.ForceUpdate + 1
		c.Spec = spec
		g.apply(store.UpdateService(&c))
		return
	}
	g.apply(store.CreateService(&cluster.Service{ID: id, Spec: spec}))
}

func reserve(cpu, mem int64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: cpu, MemoryBytes: mem}}
	}
}

func placement(p swarm.Placement) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &p }
}

func spreadOver(keys ...string) func(*swarm.ServiceSpec) {
	var p swarm.Placement
	for _, k := range keys {
		p.Preferences = append(p.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: k}})
	}
	return placement(p)
}

// pending adds waiting tasks of a service; on names a node for each, if given.
func (g *stage) pending(service string, n int, on ...string) (ids []string) {
	g.t.Helper()
	var cs []store.Change
	for i := range n {
		g.tasks++
		t := &cluster.Task{
			ID: fmt.Sprintf("t%05d", g.tasks), ServiceID: service, SpecVersion: g.s.View().Service(service).SpecVersion,
			Slot: g.tasks, Desired: cluster.StateRunning, Status: cluster.Status{State: cluster.StatePending},
		}
		if len(on) > 0 {
			t.NodeID, t.Slot = on[i%len(on)], 0
		}
		ids = append(ids, t.ID)
		cs = append(cs, store.CreateTask(t))
	}
	g.apply(cs...)
	return ids
}

// running adds tasks that run already.
func (g *stage) running(service, node string, n int) (ids []string) {
	g.t.Helper()
	for range n {
		g.tasks++
		id := fmt.Sprintf("t%05d", g.tasks)
		g.apply(store.CreateTask(&cluster.Task{
			ID: id, ServiceID: service, SpecVersion: g.s.View().Service(service).SpecVersion, NodeID: node,
			Slot: g.tasks, Desired: cluster.StateRunning, Status: cluster.Status{State: cluster.StateRunning},
		}))
		ids = append(ids, id)
	}
	return ids
}

func (g *stage) end(id string, st cluster.State) {
	g.t.Helper()
	c := *g.s.View().Task(id)
	c.Desired = cluster.StateShutdown
	g.apply(store.UpdateTask(&c), store.SetStatus(id, cluster.Status{State: st, At: g.now}))
}

// placed counts the tasks of a service by node that are assigned and wanted.
func (g *stage) placed(service string) map[string]int {
	out := map[string]int{}
	for _, t := range g.s.View().TasksOf(service) {
		if t.Status.State >= cluster.StateAssigned && t.Active() {
			out[t.NodeID]++
		}
	}
	return out
}

func (g *stage) want(service string, want map[string]int) {
	g.t.Helper()
	if d := cmp.Diff(want, g.placed(service)); d != "" {
		g.t.Errorf("tasks of %s by node, want - got +:\n%s", service, d)
	}
}

func (g *stage) errOf(id string) string { return g.s.View().Task(id).Status.Err }
