package schedule

import (
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
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

func TestTheLeastLoadedNodeIsChosen(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.node("c")
	g.service("other")
	g.service("web")
	g.running("other", "a", 3)
	g.running("other", "b", 1)
	g.pending("web", 1)
	g.schedule()
	g.want("web", map[string]int{"c": 1})
}

func TestTasksAreEvenByServiceAndTotalsBreakTies(t *testing.T) {
	g := newStage(t)
	for _, id := range []string{"a", "b", "c"} {
		g.node(id)
	}
	g.service("other")
	g.service("web")
	g.running("other", "a", 10)
	g.pending("web", 7)
	g.schedule()
	g.want("web", map[string]int{"a": 2, "b": 3, "c": 2}) // even, though a is loaded
	g.pending("web", 2)
	g.schedule()
	g.want("web", map[string]int{"a": 3, "b": 3, "c": 3})
}

func TestRemovedUnreadyPausedDrainedAndUnknownNodesGetNothing(t *testing.T) {
	g := newStage(t)
	g.node("good")
	g.node("down", func(n *cluster.Node) { n.Status.State = swarm.NodeStateDown })
	g.node("paused", func(n *cluster.Node) { n.Spec.Availability = swarm.NodeAvailabilityPause })
	g.node("drained", func(n *cluster.Node) { n.Spec.Availability = swarm.NodeAvailabilityDrain })
	g.node("unknown")
	g.node("removed")
	g.s.ObserveNode("unknown", cluster.NodeStatus{State: swarm.NodeStateUnknown})
	g.schedule()
	g.apply(store.DeleteNode(g.s.View().Node("removed")))
	g.service("web")
	g.pending("web", 10)
	g.schedule()
	g.want("web", map[string]int{"good": 10})
}

func TestWaitingIsExplainedAndEndsWhenANodeComes(t *testing.T) {
	g := newStage(t)
	g.service("web")
	id := g.pending("web", 1)[0]
	g.schedule()
	if got := g.errOf(id); got != "no suitable node" {
		t.Errorf("without nodes: %q", got)
	}
	g.node("down", func(n *cluster.Node) { n.Status.State = swarm.NodeStateDown })
	g.schedule()
	if got := g.errOf(id); got != "no suitable node (1 node not available for new tasks)" {
		t.Errorf("with one that is down: %q", got)
	}
	g.node("good")
	g.schedule()
	g.want("web", map[string]int{"good": 1})
	if st := g.s.View().Task(id).Status; st.Err != "" || st.Message != "scheduler assigned task to node" {
		t.Errorf("its status is %+v", st)
	}
}

func TestTheMostFrequentReasonComesFirst(t *testing.T) {
	g := newStage(t)
	for i := range 4 {
		g.node(fmt.Sprint("good", i))
	}
	for i := range 2 {
		g.node(fmt.Sprint("down", i), func(n *cluster.Node) { n.Status.State = swarm.NodeStateDown })
	}
	g.service("pend", placement(swarm.Placement{Constraints: []string{"node.labels.nope==1"}}))
	g.service("pendmem", reserve(0, 900<<30))
	a, b := g.pending("pend", 1)[0], g.pending("pendmem", 1)[0]
	g.schedule()
	if got, want := g.errOf(a), "no suitable node (scheduling constraints not satisfied on 4 nodes; 2 nodes not available for new tasks)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := g.errOf(b), "no suitable node (insufficient resources on 4 nodes; 2 nodes not available for new tasks)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestANodeWhereAVersionFailedOftenIsAvoided(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.service("other")
	g.service("web")
	g.running("other", "b", 50)
	fail := func(n int) {
		for range n {
			id := g.pending("web", 1)[0]
			g.schedule()
			if g.s.View().Task(id).NodeID != "a" {
				t.Fatalf("a task went to %s", g.s.View().Task(id).NodeID)
			}
			g.end(id, cluster.StateFailed)
		}
	}
	fail(5)
	g.pending("web", 1)
	g.schedule()
	g.want("web", map[string]int{"b": 1})

	g.service("web") // a new version starts with a clean sheet
	g.pending("web", 1)
	g.schedule()
	g.want("web", map[string]int{"a": 1, "b": 1})

	g.service("fresh")
	g.now = g.now.Add(6 * time.Minute) // and so does the old one after a while
	g.pending("fresh", 1)
	g.schedule()
	if len(g.l.failing) != 0 {
		t.Errorf("failures of six minutes ago are remembered: %v", g.l.failing)
	}
}

func TestReservationsAreKeptAndFreedOnDeath(t *testing.T) {
	g := newStage(t)
	g.node("a") // 4 CPUs
	g.service("web", reserve(1e9, 0))
	ids := g.pending("web", 6)
	g.schedule()
	g.want("web", map[string]int{"a": 4})
	if got := g.errOf(ids[5]); got != "no suitable node (insufficient resources on 1 node)" {
		t.Errorf("%q", got)
	}
	c := *g.s.View().Task(ids[0]) // told to stop, but still there
	c.Desired = cluster.StateShutdown
	g.apply(store.UpdateTask(&c))
	if g.schedule(); g.placed("web")["a"] != 3 {
		t.Error("its resources were given away while it stops")
	}
	g.end(ids[0], cluster.StateShutdown)
	g.schedule()
	g.want("web", map[string]int{"a": 4})
}

func TestGenericResources(t *testing.T) {
	g := newStage(t)
	gpu := func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 2}},
		}}}
	}
	g.node("none")
	g.node("named", func(n *cluster.Node) {
		for _, v := range []string{"u1", "u2", "u3"} {
			n.Description.Resources.GenericResources = append(n.Description.Resources.GenericResources,
				swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: v}})
		}
	})
	g.node("discrete", func(n *cluster.Node) {
		n.Description.Resources.GenericResources = []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 4}},
		}
	})
	g.service("train", gpu)
	g.pending("train", 5)
	g.schedule()
	g.want("train", map[string]int{"named": 1, "discrete": 2})
}

func TestPlatforms(t *testing.T) {
	g := newStage(t)
	g.node("amd")
	g.node("arm", func(n *cluster.Node) { n.Description.Platform.Architecture = "aarch64" })
	g.service("web", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "arm64", OS: "linux"}}}))
	g.service("win", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "amd64", OS: "windows"}}}))
	g.service("amd", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "amd64", OS: "linux"}}}))
	g.pending("web", 2)
	g.pending("amd", 2)
	id := g.pending("win", 1)[0]
	g.schedule()
	g.want("web", map[string]int{"arm": 2})
	g.want("amd", map[string]int{"amd": 2})
	if got := g.errOf(id); got != "no suitable node (unsupported platform on 2 nodes)" {
		t.Errorf("%q", got)
	}
}

func TestOneHostPortANode(t *testing.T) {
	port := func(proto string) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{
				{TargetPort: 80, PublishedPort: 80, Protocol: swarm.PortConfig{}.Protocol, PublishMode: swarm.PortConfigPublishModeHost},
			}}
			if proto == "udp" {
				s.EndpointSpec.Ports[0].Protocol = "udp"
			}
		}
	}
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.service("web", port("tcp"))
	g.service("dns", port("udp"))
	g.service("also", port("tcp"))
	ids := g.pending("web", 3)
	g.schedule()
	g.want("web", map[string]int{"a": 1, "b": 1})
	if got := g.errOf(ids[2]); got != "no suitable node (host-mode port already in use on 2 nodes)" {
		t.Errorf("%q", got)
	}
	g.pending("dns", 2)
	g.pending("also", 1)
	g.schedule()
	g.want("dns", map[string]int{"a": 1, "b": 1}) // UDP is another port
	g.want("also", map[string]int{})
}

func TestMaxReplicasANode(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.service("web", placement(swarm.Placement{MaxReplicas: 2}))
	ids := g.pending("web", 5)
	g.schedule()
	g.want("web", map[string]int{"a": 2, "b": 2})
	if got := g.errOf(ids[4]); got != "no suitable node (max replicas per node limit exceed)" {
		t.Errorf("%q", got)
	}
}

func TestMissingPlugins(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b", func(n *cluster.Node) {
		n.Description.Engine.Plugins = []swarm.PluginDescription{{Type: "Log", Name: "json-file"}}
	})
	driver := func(name string) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) { s.TaskTemplate.LogDriver = &swarm.Driver{Name: name} }
	}
	g.service("lb", driver("bogus"), placement(swarm.Placement{Constraints: []string{"node.hostname==b"}}))
	g.service("ok", driver("json-file"))
	id := g.pending("lb", 1)[0]
	g.pending("ok", 2)
	g.schedule()
	g.want("ok", map[string]int{"a": 1, "b": 1})
	if got := g.errOf(id); got != "no suitable node (missing plugin on 1 node; scheduling constraints not satisfied on 1 node)" {
		t.Errorf("%q", got)
	}
}

func TestPreassignedTasksComeFirst(t *testing.T) {
	g := newStage(t)
	g.node("a") // 4 CPUs
	g.service("web", reserve(3e9, 0))
	g.service("agent", reserve(2e9, 0))
	web := g.pending("web", 1)[0]
	g.now = g.now.Add(time.Minute)
	agent := g.pending("agent", 1, "a")[0]
	g.schedule()
	g.want("agent", map[string]int{"a": 1})
	if got := g.s.View().Task(agent).Status.Message; got != "scheduler confirmed task can run on preassigned node" {
		t.Errorf("%q", got)
	}
	if got := g.errOf(web); got != "no suitable node (insufficient resources on 1 node)" {
		t.Errorf("%q", got)
	}
	second := g.pending("agent", 2, "a")[1]
	g.schedule()
	if got := g.errOf(second); got != "insufficient resources on 1 node" {
		t.Errorf("%q", got)
	}
}

func TestObsoleteWaitingTasksAreShutDown(t *testing.T) {
	g := newStage(t)
	g.service("web")
	for _, d := range []cluster.State{cluster.StateShutdown, cluster.StateRemove} {
		id := g.pending("web", 1)[0]
		c := *g.s.View().Task(id)
		c.Desired = d
		g.apply(store.UpdateTask(&c))
		g.schedule()
		if st := g.s.View().Task(id).Status.State; st != cluster.StateShutdown {
			t.Errorf("wanted %s: it is %s", d, st)
		}
	}
}

func TestConstraintsOfOneNode(t *testing.T) {
	g := newStage(t)
	g.node("a", func(n *cluster.Node) { n.Status.Addr = "10.0.0.1" })
	g.node("b", func(n *cluster.Node) { n.Status.Addr = "10.0.1.2" })
	for c, want := range map[string]string{
		"node.id==a": "a", "node.hostname!=a": "b", "node.ip==10.0.1.0/24": "b", "node.ip!=10.0.1.2": "a",
		"node.hostname==B": "b",
	} {
		g.service(c, placement(swarm.Placement{Constraints: []string{c}}))
		g.pending(c, 3)
		g.schedule()
		g.want(c, map[string]int{want: 3})
	}
}

func TestSpreadPreferences(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes map[string]map[string]string // labels by node
		keys  []string
		tasks int
		want  map[string]int
	}{
		{"even over zones of unequal size",
			map[string]map[string]string{"a1": {"z": "a"}, "a2": {"z": "a"}, "a3": {"z": "a"}, "b1": {"z": "b"}},
			[]string{"node.labels.z"}, 6, map[string]int{"a1": 1, "a2": 1, "a3": 1, "b1": 3}},
		{"a missing label is a branch of its own",
			map[string]map[string]string{"a1": {"z": "a"}, "n1": {}, "n2": {}},
			[]string{"node.labels.z"}, 4, map[string]int{"a1": 2, "n1": 1, "n2": 1}},
		{"nested",
			map[string]map[string]string{
				"a1": {"z": "a", "r": "1"}, "a2": {"z": "a", "r": "2"}, "a3": {"z": "a", "r": "2"},
				"b1": {"z": "b", "r": "1"}, "b2": {"z": "b", "r": "2"},
			},
			[]string{"node.labels.z", "node.labels.r"}, 8, map[string]int{"a1": 2, "a2": 1, "a3": 1, "b1": 2, "b2": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newStage(t)
			for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
				g.node(id, func(n *cluster.Node) { n.Spec.Labels = c.nodes[id] })
			}
			g.service("web", spreadOver(c.keys...))
			g.pending("web", c.tasks)
			g.schedule()
			g.want("web", c.want)
		})
	}
}

func TestSpreadOverflowsWithinCapacity(t *testing.T) {
	g := newStage(t)
	g.node("a1", label("z", "a"))
	g.node("a2", label("z", "a"))
	g.node("b1", label("z", "b")) // room for 4
	g.service("web", spreadOver("node.labels.z"), reserve(1e9, 0))
	ids := g.pending("web", 13)
	g.schedule()
	g.want("web", map[string]int{"a1": 4, "a2": 4, "b1": 4})
	if got := g.errOf(ids[12]); got != "no suitable node (insufficient resources on 3 nodes)" {
		t.Errorf("%q", got)
	}
}

// TestNestedSpreadOverflowsAndEnds: a full branch's share goes to its siblings,
// at each level, and what no branch has room for waits.
func TestNestedSpreadOverflowsAndEnds(t *testing.T) {
	g := newStage(t)
	for id, labels := range map[string]map[string]string{
		"a1": {"z": "a", "r": "1"}, "a2": {"z": "a", "r": "2"}, "b1": {"z": "b", "r": "1"}, "b2": {"z": "b"},
	} {
		g.node(id, func(n *cluster.Node) {
			n.Spec.Labels = labels
			if id == "a1" {
				n.Description = &swarm.NodeDescription{Resources: swarm.Resources{NanoCPUs: 1e9, MemoryBytes: 1 << 30}}
			}
		})
	}
	g.service("web", spreadOver("node.labels.z", "node.labels.r"), reserve(1e9, 0))
	g.pending("web", 8)
	g.schedule()
	g.want("web", map[string]int{"a1": 1, "a2": 3, "b1": 2, "b2": 2})
	ids := g.pending("web", 7)
	g.schedule()
	g.want("web", map[string]int{"a1": 1, "a2": 4, "b1": 4, "b2": 4})
	waiting := 0
	for _, id := range ids {
		if g.errOf(id) == "no suitable node (insufficient resources on 4 nodes)" {
			waiting++
		}
	}
	if waiting != 2 {
		t.Errorf("%d wait and say why; want 2", waiting)
	}
}

// TestAnyOrderOfEventsGivesAFairAndStablePlan throws nodes, tasks and deaths at
// the scheduler and checks what must hold after each pass.
func TestAnyOrderOfEventsGivesAFairAndStablePlan(t *testing.T) {
	for seed := range int64(30) {
		rng := rand.New(rand.NewSource(seed))
		g := newStage(t)
		for i := range 3 + rng.Intn(5) {
			g.node(fmt.Sprint("n", i), label("z", fmt.Sprint(rng.Intn(2))))
		}
		g.service("plain")
		g.service("heavy", reserve(1e9, 1<<30))
		g.service("spread", spreadOver("node.labels.z"))
		for range 30 {
			g.now = g.now.Add(time.Second)
			switch rng.Intn(4) {
			case 0, 1:
				g.pending([]string{"plain", "heavy", "spread"}[rng.Intn(3)], 1+rng.Intn(5))
			case 2:
				if ts := g.s.View().Tasks(); len(ts) > 0 {
					g.end(ts[rng.Intn(len(ts))].ID, cluster.StateFailed)
				}
			case 3:
				ns := g.s.View().Nodes()
				g.changeNode(ns[rng.Intn(len(ns))].ID, func(n *cluster.Node) {
					n.Status.State = swarm.NodeStateReady
					if rng.Intn(3) == 0 {
						n.Status.State = swarm.NodeStateDown
					}
				})
			}
			g.schedule()
			g.within(seed)
		}
	}
}

// within checks that no node has promised more than it has, and that a task
// waits only when none has room.
func (g *stage) within(seed int64) {
	g.t.Helper()
	v := g.s.View()
	free := map[string]int64{}
	for _, n := range v.Nodes() {
		if n.Ready() {
			free[n.ID] = 4
		}
	}
	for _, t := range v.TasksOf("heavy") {
		if t.MayBeAlive() && v.Node(t.NodeID).Ready() {
			free[t.NodeID]--
		}
	}
	room := false
	for id, n := range free {
		if n < 0 {
			g.t.Fatalf("seed %d: node %s has promised too much", seed, id)
		}
		room = room || n > 0
	}
	for _, t := range v.Tasks() {
		waits := t.Status.State == cluster.StatePending && t.Desired == cluster.StateRunning
		if waits && (room || t.ServiceID != "heavy" && len(free) > 0) {
			g.t.Fatalf("seed %d: task %s of %s waits though there is room: %q", seed, t.ID, t.ServiceID, t.Status.Err)
		}
		if waits && !strings.HasPrefix(t.Status.Err, "no suitable node") {
			g.t.Fatalf("seed %d: task %s waits and does not say why", seed, t.ID)
		}
	}
}
