package services

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// stage is a store with one service, "web", on it.
type stage struct {
	t     testing.TB
	s     *store.Store
	index uint64
	now   time.Time
	made  int
	memo  *pass.Memo
}

func newStage(t testing.TB, spec swarm.ServiceSpec, nodes ...string) *stage {
	g := &stage{t: t, s: store.New(), now: time.Unix(10_000, 0), memo: pass.NewMemo()}
	for _, id := range nodes {
		g.apply(store.CreateNode(&cluster.Node{
			ID: id, Spec: &swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive},
			Description: &swarm.NodeDescription{Hostname: id, Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 4 << 30}},
			Status:      cluster.NodeStatus{State: swarm.NodeStateReady},
		}))
	}
	spec.Name = "web"
	g.apply(store.CreateService(&cluster.Service{ID: "web", Spec: &spec}))
	g.allocate()
	return g
}

func replicas(n uint64, change ...func(*swarm.ServiceSpec)) swarm.ServiceSpec {
	s := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func global(change ...func(*swarm.ServiceSpec)) swarm.ServiceSpec {
	s := swarm.ServiceSpec{Mode: swarm.ServiceMode{Global: &swarm.GlobalService{}}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func (g *stage) apply(cs ...store.Change) {
	g.t.Helper()
	g.index++
	if err := g.s.Apply(g.index, store.Entry{At: g.now, Changes: cs}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *stage) allocate() {
	g.t.Helper()
	c := *g.s.View().Service("web")
	c.Allocated = c.SpecVersion
	g.apply(store.UpdateService(&c))
}

func (g *stage) update(change func(*swarm.ServiceSpec)) {
	g.t.Helper()
	c := *g.s.View().Service("web")
	spec := *c.Spec
	change(&spec)
	c.Spec = &spec
	g.apply(store.UpdateService(&c))
}

func (g *stage) node(id string, change func(*cluster.Node)) {
	g.t.Helper()
	c := *g.s.View().Node(id)
	change(&c)
	g.apply(store.UpdateNode(&c))
}

func down(n *cluster.Node)  { n.Status.State = swarm.NodeStateDown }
func drain(n *cluster.Node) { n.Spec = &swarm.NodeSpec{Availability: swarm.NodeAvailabilityDrain} }
func pause(n *cluster.Node) { n.Spec = &swarm.NodeSpec{Availability: swarm.NodeAvailabilityPause} }

// pass makes one pass; then planning again must yield nothing.
func (g *stage) pass() (again time.Time) {
	g.t.Helper()
	todo, again := Plan(g.now, g.s.View(), g.memo)
	pass.Number(todo, func() string { g.made++; return fmt.Sprintf("t%04d", g.made) })
	for _, group := range todo {
		g.apply(group...)
	}
	if rest, _ := Plan(g.now, g.s.View(), nil); len(rest) != 0 {
		g.t.Errorf("planning again yields %d groups\n%s", len(rest), g)
	}
	return again
}

// run gives a task a node and lets it run there.
func (g *stage) run(id, node string) {
	g.t.Helper()
	c := *g.s.View().Task(id)
	c.NodeID = node
	g.apply(store.UpdateTask(&c), store.SetStatus(id, cluster.Status{State: cluster.StateRunning, At: g.now, Serving: true}))
}

func (g *stage) end(id string, st cluster.State) {
	g.t.Helper()
	g.apply(store.SetStatus(id, cluster.Status{State: st, At: g.now}))
}

// String lists the tasks: id, place, node, what is wanted, what is.
func (g *stage) String() string { return strings.Join(g.rows(), "\n") }

func (g *stage) rows() (out []string) {
	for _, t := range g.s.View().Tasks() {
		place := fmt.Sprint(t.Slot)
		if t.Slot == 0 {
			place = t.NodeID
		}
		out = append(out, fmt.Sprintf("%s %s %s %s", t.ID, place, t.Desired, t.Status.State))
	}
	return out
}

func (g *stage) want(rows ...string) {
	g.t.Helper()
	if d := cmp.Diff(rows, g.rows()); d != "" {
		g.t.Errorf("want - got +:\n%s", d)
	}
}

func TestTheLowestFreeSlotsAreFilled(t *testing.T) {
	g := newStage(t, replicas(3), "a")
	g.pass()
	g.want("t0001 1 running new", "t0002 2 running new", "t0003 3 running new")
}

func TestNothingIsMadeBeforeTheSpecIsAllocated(t *testing.T) {
	g := newStage(t, replicas(1), "a")
	g.update(func(s *swarm.ServiceSpec) {
		*s = replicas(3)
		s.Name, s.EndpointSpec = "web", &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	})
	g.pass()
	g.want()
	g.allocate()
	g.pass()
	if n := len(g.rows()); n != 3 {
		t.Errorf("%d tasks; want 3", n)
	}
}

func TestOrderOfScaleDown(t *testing.T) {
	g := newStage(t, replicas(6), "a", "b")
	g.pass()
	for i, node := range []string{"a", "a", "b", "a", "b"} { // the sixth runs nowhere yet
		g.run(fmt.Sprintf("t%04d", i+1), node)
	}
	left := func(n uint64) (slots []int) {
		g.update(func(s *swarm.ServiceSpec) { *s = replicas(n); s.Name = "web" })
		g.pass()
		for _, task := range g.s.View().Tasks() {
			if task.Desired == cluster.StateRunning {
				slots = append(slots, task.Slot)
			}
		}
		return slots
	}
	for _, c := range []struct {
		n    uint64
		want []int
	}{
		{5, []int{1, 2, 3, 4, 5}}, // what does not run goes first
		{4, []int{1, 2, 3, 5}},    // then the third on node a
		{3, []int{1, 2, 3}},       // then a second one, of the highest slot
		{2, []int{1, 3}},          // and one stays on each node
		{0, nil},
	} {
		if got := left(c.n); !slices.Equal(got, c.want) {
			t.Errorf("of %d replicas slots %v are left; want %v", c.n, got, c.want)
		}
	}
	for _, task := range g.s.View().Tasks() {
		if task.Desired != cluster.StateRemove {
			t.Errorf("task %s is wanted %s; want remove", task.ID, task.Desired)
		}
	}
}

func TestWhatBecomesOfATaskThatEnded(t *testing.T) {
	g := newStage(t, replicas(1), "a")
	g.pass()
	g.run("t0001", "a")
	g.end("t0001", cluster.StateFailed)
	g.pass()
	g.want("t0001 1 shutdown failed", "t0002 1 ready new")
	nb := g.s.View().Task("t0002").NotBefore
	if d := nb.Sub(g.now); d != 5*time.Second {
		t.Errorf("it waits %v; want the default of 5s", d)
	}
	if again := g.pass(); !again.Equal(nb) {
		t.Errorf("the next look is at %v; want %v", again, nb)
	}
	g.now = nb
	g.pass()
	g.want("t0001 1 shutdown failed", "t0002 1 running new")
}

func TestADrainedTaskIsWaitedFor(t *testing.T) {
	g := newStage(t, replicas(1), "a", "b")
	g.pass()
	g.run("t0001", "a")
	g.node("a", drain)
	g.pass()
	g.want("t0001 1 shutdown running", "t0002 1 ready new")
	g.now = g.now.Add(59 * time.Second)
	g.pass()
	g.want("t0001 1 shutdown running", "t0002 1 ready new")
	g.end("t0001", cluster.StateShutdown)
	g.pass()
	g.want("t0001 1 shutdown shutdown", "t0002 1 running new")
}

func TestALostNodesTaskIsNotWaitedFor(t *testing.T) {
	for name, lose := range map[string]func(g *stage){
		"down":    func(g *stage) { g.node("a", down) },
		"removed": func(g *stage) { g.apply(store.DeleteNode(g.s.View().Node("a"))) },
	} {
		t.Run(name, func(t *testing.T) {
			never := func(s *swarm.ServiceSpec) {
				s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}
			}
			g := newStage(t, replicas(1, never), "a", "b")
			g.pass()
			g.run("t0001", "a")
			lose(g)
			g.pass()
			g.want("t0001 1 shutdown running", "t0002 1 running new")
		})
	}
}

func TestUnknownAndPausedNodesAreLeftAlone(t *testing.T) {
	g := newStage(t, replicas(2), "a", "b")
	g.pass()
	g.run("t0001", "a")
	g.run("t0002", "b")
	g.s.ObserveNode("a", cluster.NodeStatus{State: swarm.NodeStateUnknown})
	g.node("b", pause)
	g.pass()
	g.want("t0001 1 running running", "t0002 2 running running")
}

func TestADuplicateIsRemoved(t *testing.T) {
	g := newStage(t, replicas(1), "a", "b")
	g.pass()
	dup := *g.s.View().Task("t0001")
	dup.ID = "t0000"
	g.apply(store.CreateTask(&dup))
	g.run("t0001", "a")
	g.pass()
	g.want("t0000 1 shutdown new", "t0001 1 running running")
}

func TestGlobalServices(t *testing.T) {
	zone := func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname!=d"}}
	}
	g := newStage(t, global(zone), "a", "b", "c", "d", "e")
	g.node("e", pause)
	g.pass()
	g.want("t0001 a running new", "t0002 b running new", "t0003 c running new")
	for i, node := range []string{"a", "b", "c"} {
		g.run(fmt.Sprintf("t%04d", i+1), node)
	}
	g.node("a", down)
	g.node("b", drain)
	g.node("c", pause)
	g.node("e", func(n *cluster.Node) { n.Spec = &swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive} })
	g.pass()
	g.want("t0001 a shutdown running", "t0002 b shutdown running", "t0003 c running running", "t0004 e running new")
	g.node("a", func(n *cluster.Node) { n.Status.State = swarm.NodeStateReady })
	g.pass() // it comes back, and what ran there is still to stop
	g.want("t0001 a shutdown running", "t0002 b shutdown running", "t0003 c running running", "t0004 e running new", "t0005 a ready new")
	g.end("t0001", cluster.StateFailed)
	g.pass()
	g.want("t0001 a shutdown failed", "t0002 b shutdown running", "t0003 c running running", "t0004 e running new", "t0005 a running new")
}

func TestAMisfitIsRejectedAndReplaced(t *testing.T) {
	g := newStage(t, replicas(1, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 30}}
	}), "a", "b")
	g.pass()
	g.run("t0001", "a")
	g.node("a", func(n *cluster.Node) { n.Description = &swarm.NodeDescription{} })
	todo, _ := Plan(g.now, g.s.View(), nil)
	pass.Number(todo, func() string { return "t0002" })
	for _, group := range todo {
		g.apply(group...)
	}
	g.want("t0001 1 shutdown running", "t0002 1 ready new")
	g.pass() // it may hold a port, or a volume: waited for
	g.want("t0001 1 shutdown running", "t0002 1 ready new")
	g.end("t0001", cluster.StateShutdown)
	g.pass()
	g.want("t0001 1 shutdown rejected", "t0002 1 running new")
	if st := g.s.View().Task("t0001").Status; st.Err != rejectedErr {
		t.Errorf("it ended with %q", st.Err)
	}
}

func TestAModeThatChangesLeavesNothingBehind(t *testing.T) {
	g := newStage(t, replicas(2), "a")
	g.pass()
	g.update(func(s *swarm.ServiceSpec) { *s = global(); s.Name = "web" })
	g.allocate()
	g.pass()
	g.want("t0001 1 remove new", "t0002 2 remove new", "t0003 a running new")
}

// A task that fails while it waits for its delay has not used the delay up: a
// service whose image is missing must not make a task at every pass.
func TestDelayHoldsTasksThatFailBeforeTheyStart(t *testing.T) {
	g := newStage(t, replicas(1), "a")
	g.pass()
	g.run("t0001", "a")
	g.end("t0001", cluster.StateFailed)
	g.pass()
	prepared := *g.s.View().Task("t0002")
	prepared.NodeID = "a"
	g.apply(store.UpdateTask(&prepared))
	g.end("t0002", cluster.StateRejected)
	again := g.pass()
	g.want("t0001 1 shutdown failed", "t0002 1 ready rejected")
	g.now = g.s.View().Task("t0002").NotBefore
	if !again.Equal(g.now) {
		t.Errorf("it looks again at %v, want %v", again, g.now)
	}
	g.pass()
	g.want("t0001 1 shutdown failed", "t0002 1 shutdown rejected", "t0003 1 ready new")
}
