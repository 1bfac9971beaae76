package schedule

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

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
