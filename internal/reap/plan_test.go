package reap

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

type stage struct {
	t     testing.TB
	s     *store.Store
	index uint64
	now   time.Time
	m     *memory
}

func newStage(t testing.TB) *stage {
	g := &stage{t: t, s: store.New(), now: time.Unix(1_000_000, 0), m: newMemory()}
	g.apply(store.PutCluster(&cluster.Cluster{ID: "c", Spec: &swarm.Spec{}}))
	g.apply(store.CreateNode(&cluster.Node{ID: "a", Spec: &swarm.NodeSpec{}, Status: cluster.NodeStatus{State: swarm.NodeStateReady}}))
	g.apply(store.CreateService(&cluster.Service{ID: "web", Spec: &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}}}))
	return g
}

func (g *stage) apply(cs ...store.Change) {
	g.t.Helper()
	g.index++
	if err := g.s.Apply(g.index, store.Entry{At: g.now, Changes: cs}); err != nil {
		g.t.Fatal(err)
	}
	g.now = g.now.Add(time.Second)
}

// pass makes passes until nothing is left to do and returns the ids of the tasks
// that are left.
func (g *stage) pass() (left []string) {
	g.t.Helper()
	for range 10 {
		todo, _ := g.m.Plan(g.now, g.s.View())
		if len(todo) == 0 {
			for _, t := range g.s.View().Tasks() {
				left = append(left, t.ID)
			}
			return left
		}
		for _, group := range todo {
			g.apply(group...)
		}
	}
	g.t.Fatal("it never settles")
	return nil
}

func (g *stage) task(id string, desired, state cluster.State) {
	g.t.Helper()
	g.apply(store.CreateTask(&cluster.Task{
		ID: id, ServiceID: "web", SpecVersion: g.s.View().Service("web").SpecVersion, Slot: 1, NodeID: "a",
		Desired: desired, Status: cluster.Status{State: state},
	}))
}

func TestTheOldestOfTheHistoryGoFirst(t *testing.T) {
	g := newStage(t)
	for i := range 8 {
		g.task(fmt.Sprint("t", i), cluster.StateShutdown, cluster.StateFailed)
	}
	g.task("t8", cluster.StateRunning, cluster.StateRunning)
	if left := g.pass(); !slices.Equal(left, []string{"t4", "t5", "t6", "t7", "t8"}) {
		t.Errorf("%v are left; want the last 5, the live one included", left)
	}
}

func TestWhatHasNotEndedIsNotForgotten(t *testing.T) {
	g := newStage(t)
	g.task("t0", cluster.StateShutdown, cluster.StateRunning)
	for i := 1; i < 8; i++ {
		g.task(fmt.Sprint("t", i), cluster.StateShutdown, cluster.StateFailed)
	}
	if left := g.pass(); !slices.Equal(left, []string{"t0", "t4", "t5", "t6", "t7"}) {
		t.Errorf("%v are left", left)
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		limit    int64
		attempts uint64
		want     int
	}{{0, 0, 1}, {3, 0, 3}, {-1, 0, 12}, {3, 9, 10}, {-1, 2, 3}} {
		g := newStage(t)
		cl := *g.s.View().Cluster()
		cl.Spec = &swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: &c.limit}}
		g.apply(store.PutCluster(&cl))
		svc := *g.s.View().Service("web")
		svc.Spec = &swarm.ServiceSpec{Annotations: svc.Spec.Annotations, TaskTemplate: swarm.TaskSpec{
			RestartPolicy: &swarm.RestartPolicy{MaxAttempts: &c.attempts},
		}}
		g.apply(store.UpdateService(&svc))
		for i := range 11 {
			g.task(fmt.Sprintf("t%02d", i), cluster.StateShutdown, cluster.StateFailed)
		}
		g.task("t99", cluster.StateRunning, cluster.StateRunning)
		if left := g.pass(); len(left) != c.want {
			t.Errorf("limit %d, attempts %d: %d tasks are left; want %d", c.limit, c.attempts, len(left), c.want)
		}
	}
}

func TestRemovedTasksGoWhenTheyHaveEnded(t *testing.T) {
	g := newStage(t)
	g.task("runs", cluster.StateRemove, cluster.StateRunning)
	g.task("ended", cluster.StateRemove, cluster.StateShutdown)
	g.task("nowhere", cluster.StateRemove, cluster.StatePending)
	if left := g.pass(); !slices.Equal(left, []string{"runs"}) {
		t.Errorf("%v are left", left)
	}
	g.apply(store.DeleteNode(g.s.View().Node("a")))
	if left := g.pass(); len(left) != 0 {
		t.Errorf("%v are left when the node is gone", left)
	}
}

func TestTasksOfAServiceThatIsGoneAreRemoved(t *testing.T) {
	g := newStage(t)
	g.task("runs", cluster.StateRunning, cluster.StateRunning)
	g.task("ended", cluster.StateShutdown, cluster.StateFailed)
	g.apply(store.DeleteService(g.s.View().Service("web")))
	if left := g.pass(); !slices.Equal(left, []string{"runs"}) || g.s.View().Task("runs").Desired != cluster.StateRemove {
		t.Errorf("%v are left", left)
	}
}

func TestOrphans(t *testing.T) {
	g := newStage(t)
	g.task("t", cluster.StateShutdown, cluster.StateRunning)
	n := *g.s.View().Node("a")
	n.Status = cluster.NodeStatus{State: swarm.NodeStateDown, Since: g.now}
	g.apply(store.UpdateNode(&n))
	since := n.Status.Since
	g.now = since.Add(OrphanAfter - time.Minute)
	if _, again := g.m.Plan(g.now, g.s.View()); !again.Equal(since.Add(OrphanAfter)) {
		t.Errorf("the next look is at %v; want 24 h after %v", again, since)
	}
	g.pass()
	if st := g.s.View().Task("t").Status.State; st != cluster.StateRunning {
		t.Errorf("before its time it is %s", st)
	}
	g.now = since.Add(OrphanAfter)
	g.pass()
	if st := g.s.View().Task("t").Status.State; st != cluster.StateOrphaned {
		t.Errorf("it is %s", st)
	}
}

func TestPlainContainersLeaveNoHistory(t *testing.T) {
	g := newStage(t)
	g.apply(store.CreateNetwork(&cluster.Network{ID: "n", Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "n"}}, PendingDelete: true}))
	g.apply(store.CreateTask(&cluster.Task{ID: "t", NodeID: "a", Desired: cluster.StateRunning, Attach: &cluster.Attach{NetworkID: "n"},
		Status: cluster.Status{State: cluster.StateRunning}}))
	if left := g.pass(); len(left) != 1 || g.s.View().Network("n") == nil {
		t.Error("a network went while a container was in it")
	}
	g.apply(store.SetStatus("t", cluster.Status{State: cluster.StateShutdown}))
	if left := g.pass(); len(left) != 0 || g.s.View().Network("n") != nil {
		t.Errorf("%v are left, and network %v", left, g.s.View().Network("n"))
	}
}
