package rollout

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// stage is a store with one service, "web", of n tasks that run on node "a".
type stage struct {
	t     testing.TB
	s     *store.Store
	index uint64
	now   time.Time
	made  int
	began map[string]time.Time
	memo  *pass.Memo
}

func newStage(t testing.TB, n int, cfg *swarm.UpdateConfig) *stage {
	g := &stage{t: t, s: store.New(), now: time.Unix(10_000, 0), began: map[string]time.Time{}, memo: pass.NewMemo()}
	count := uint64(n)
	g.apply(store.CreateNode(&cluster.Node{
		ID: "a", Spec: &swarm.NodeSpec{}, Description: &swarm.NodeDescription{}, Status: cluster.NodeStatus{State: swarm.NodeStateReady},
	}))
	g.apply(store.CreateService(&cluster.Service{ID: "web", Spec: &swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "web"},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &count}},
		UpdateConfig: cfg, RollbackConfig: cfg,
	}}))
	g.service(func(s *cluster.Service) { s.Allocated = s.SpecVersion })
	for slot := 1; slot <= n; slot++ {
		task := cluster.NewTask(g.svc(), cluster.SlotKey{Slot: slot}, cluster.StateRunning, time.Time{})
		task.ID = fmt.Sprintf("old%d", slot)
		g.apply(store.CreateTask(task))
		g.run(task.ID)
	}
	return g
}

func (g *stage) svc() *cluster.Service { return g.s.View().Service("web") }

func (g *stage) apply(cs ...store.Change) {
	g.t.Helper()
	g.index++
	if err := g.s.Apply(g.index, store.Entry{At: g.now, Changes: cs}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *stage) service(change func(*cluster.Service)) {
	g.t.Helper()
	c := *g.svc()
	change(&c)
	g.apply(store.UpdateService(&c))
}

// update writes a new spec as control does.
func (g *stage) update() {
	g.t.Helper()
	g.service(func(s *cluster.Service) {
		spec := *s.Spec
		spec.TaskTemplate.ForceUpdate++
		s.Previous, s.Spec, s.Update = s.Spec, &spec, nil
	})
	g.service(func(s *cluster.Service) { s.Allocated = s.SpecVersion })
}

func (g *stage) pass() (again time.Time) {
	g.t.Helper()
	for range 10 {
		todo, again := Plan(g.now, g.s.View(), g.began, g.memo)
		pass.Number(todo, func() string { g.made++; return fmt.Sprintf("new%d", g.made) })
		for _, group := range todo {
			g.apply(group...)
		}
		if len(todo) == 0 {
			return again
		}
	}
	g.t.Fatal("it never settles")
	return
}

func (g *stage) run(id string) {
	g.t.Helper()
	c := *g.s.View().Task(id)
	c.NodeID, c.Desired = "a", cluster.StateRunning
	g.apply(store.UpdateTask(&c), store.SetStatus(id, cluster.Status{State: cluster.StateRunning, At: g.now, Serving: true}))
}

func (g *stage) end(id string, st cluster.State) {
	g.t.Helper()
	g.apply(store.SetStatus(id, cluster.Status{State: st, At: g.now}))
}

func (g *stage) want(state swarm.UpdateState, tasks ...string) {
	g.t.Helper()
	var got []string
	for _, t := range g.s.View().Tasks() {
		if t.Desired <= cluster.StateRunning {
			got = append(got, fmt.Sprintf("%s %d %s", t.ID, t.Slot, t.Desired))
		}
	}
	if d := cmp.Diff(tasks, got); d != "" {
		g.t.Errorf("wanted tasks, want - got +:\n%s", d)
	}
	var st swarm.UpdateState
	if u := g.svc().Update; u != nil {
		st = u.State
	}
	if st != state {
		g.t.Errorf("the update is %q; want %q", st, state)
	}
}

func TestAServiceThatIsNewIsNotUpdated(t *testing.T) {
	g := newStage(t, 2, nil)
	g.pass()
	g.want("", "old1 1 running", "old2 2 running")
}

func TestStopFirstStepByStep(t *testing.T) {
	g := newStage(t, 2, nil)
	g.update()
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 ready", "old2 2 running")
	g.end("old1", cluster.StateShutdown)
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 ready", "old2 2 running") // starting it is services'
	g.run("new1")
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 running", "new2 2 ready")
	g.run("new2")
	again := g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 running", "new2 2 running") // watched for a while
	if d := again.Sub(g.now); d != 5*time.Second {
		t.Errorf("the last one is watched for %v; want 5s", d)
	}
	g.now = again
	g.pass()
	g.want(swarm.UpdateStateCompleted, "new1 1 running", "new2 2 running")
}

func TestStartFirstStepByStep(t *testing.T) {
	g := newStage(t, 1, &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst})
	g.update()
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 running", "old1 1 running")
	g.run("new1")
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 running")
}

func TestANewTaskThatDoesNotServeDoesNotEndAnOldOne(t *testing.T) {
	g := newStage(t, 1, &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst})
	g.update()
	g.pass()
	g.apply(store.SetStatus("new1", cluster.Status{State: cluster.StateRunning}))
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 running", "old1 1 running")
}

func TestParallelismZeroIsAllAtOnce(t *testing.T) {
	g := newStage(t, 4, &swarm.UpdateConfig{Parallelism: 0})
	g.update()
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 ready", "new2 2 ready", "new3 3 ready", "new4 4 ready")
}

func TestWhatServesNothingIsReplacedFirst(t *testing.T) {
	g := newStage(t, 3, &swarm.UpdateConfig{Parallelism: 1})
	g.apply(store.SetStatus("old3", cluster.Status{State: cluster.StateRunning}))
	g.update()
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 3 ready", "old1 1 running", "old2 2 running")
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name  string
		cfg   swarm.UpdateConfig
		after time.Duration // from running to the end; negative: it never ran
		want  swarm.UpdateState
	}{
		{"before it ran", swarm.UpdateConfig{}, -1, swarm.UpdateStatePaused},
		{"within the monitor", swarm.UpdateConfig{}, 5 * time.Second, swarm.UpdateStatePaused},
		{"after the monitor", swarm.UpdateConfig{}, 6 * time.Second, swarm.UpdateStateUpdating},
		{"no more than the ratio", swarm.UpdateConfig{MaxFailureRatio: 0.5}, -1, swarm.UpdateStateUpdating},
		{"continue", swarm.UpdateConfig{FailureAction: swarm.UpdateFailureActionContinue}, -1, swarm.UpdateStateUpdating},
		{"rollback", swarm.UpdateConfig{FailureAction: swarm.UpdateFailureActionRollback}, -1, swarm.UpdateStateRollbackStarted},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Parallelism = 1
			c.cfg.Delay = time.Hour // so that nothing else happens
			g := newStage(t, 2, &c.cfg)
			g.update()
			g.pass()
			if c.after >= 0 {
				g.run("new1")
				g.pass()
				g.now = g.now.Add(c.after)
			}
			g.end("new1", cluster.StateFailed)
			todo, _ := Plan(g.now, g.s.View(), g.began, g.memo)
			for _, group := range todo {
				if len(group) == 1 { // the status alone
					g.apply(group...)
				}
			}
			if got := g.svc().Update.State; got != c.want {
				t.Errorf("%s; want %s", got, c.want)
			}
		})
	}
}

func TestATaskThatWasToldToStopIsNoFailure(t *testing.T) {
	g := newStage(t, 1, nil)
	g.update()
	g.pass()
	g.run("new1")
	g.end("new1", cluster.StateShutdown)
	g.pass()
	if got := g.svc().Update.State; got != swarm.UpdateStateUpdating {
		t.Errorf("%s", got)
	}
}

func TestAnUnknownNodesTasksAreLeftAlone(t *testing.T) {
	g := newStage(t, 2, &swarm.UpdateConfig{Parallelism: 0})
	g.s.ObserveNode("a", cluster.NodeStatus{State: swarm.NodeStateUnknown})
	g.update()
	g.pass()
	g.want("", "old1 1 running", "old2 2 running")
	g.s.ObserveNode("a", cluster.NodeStatus{})
	g.pass()
	g.want(swarm.UpdateStateUpdating, "new1 1 ready", "new2 2 ready")
}

func TestServicesThatAreNotAllocatedWait(t *testing.T) {
	g := newStage(t, 1, nil)
	g.update()
	g.service(func(s *cluster.Service) { s.Allocated = 1 })
	g.pass()
	g.want("", "old1 1 running")
}
