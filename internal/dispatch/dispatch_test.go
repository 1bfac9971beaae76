package dispatch

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

const (
	worker  = swarm.NodeRoleWorker
	manager = swarm.NodeRoleManager
	running = cluster.StateRunning
)

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// oneLeader is a world with a leading manager m1 and worker nodes w1, w2.
func oneLeader(w *world) (*Server, *fakeNode, *fakeNode) {
	w.addNode("m1", manager)
	w.addNode("w1", worker)
	w.addNode("w2", worker)
	m1 := w.manager("m1")
	w.lead(m1)
	n1, n2 := w.node("w1", worker, "m1:2377"), w.node("w2", worker, "m1:2377")
	settle(time.Second)
	return m1, n1, n2
}

func TestNodeIsToldAndReports(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		n := w.store.View().Node("w1")
		if n.Status.State != swarm.NodeStateReady || n.Description.Hostname != "w1" || n.Status.Addr != "10.9.0.1" || n.DataAddr.String() != "10.9.0.2" {
			t.Fatalf("registered as %+v", n)
		}
		if n1.completes() != 1 || len(n1.keys()) != 0 {
			t.Errorf("an idle node was told %v", n1.keys())
		}
		w.network("net", false)
		w.service("web", "net")
		w.task("t1", "web", "w1", "net", 11)
		w.task("t2", "web", "w2", "net", 12)
		synctest.Wait() // no time passes: on the leading edge
		settle(10 * time.Millisecond)
		want := []string{"1 t1", "2 net", "3 net/w2", "4 net/t1", "4 net/t2", "5 net/web"}
		if d := cmp.Diff(want, n1.keys()); d != "" {
			t.Errorf("w1 was told (-want +got):\n%s", d)
		}
		if n1.completes() != 1 {
			t.Errorf("%d complete sets, want increments", n1.completes())
		}
		task := n1.item(cluster.ItemTask, "t1").Task
		if task.Name != "web.11.t1" || task.Spec.ContainerSpec.Image != "busybox:1" || task.Desired != running {
			t.Errorf("task %+v", task)
		}
		n1.observe("t1", cluster.Status{State: cluster.StatePreparing})
		settle(10 * time.Millisecond)
		before := w.entries()
		if st := w.store.View().Task("t1").Status; st.State != cluster.StatePreparing {
			t.Errorf("soft status %v", st.State)
		}
		n1.observe("t1", cluster.Status{State: running, Serving: true, ContainerID: "c"})
		settle(10 * time.Millisecond)
		if st := w.store.View().Task("t1").Status; st.State != running || w.entries() != before+1 {
			t.Errorf("status %v after %d entries", st.State, w.entries()-before)
		}
		if e := n2.item(cluster.ItemEndpoint, "net/t1"); e == nil || !e.Endpoint.Serving || e.Endpoint.Addr.String() != "10.0.1.11" {
			t.Errorf("w2 sees %+v", e)
		}
		// Backwards is dropped.
		n1.observe("t1", cluster.Status{State: cluster.StateStarting})
		settle(10 * time.Millisecond)
		if st := w.store.View().Task("t1").Status; st.State != running {
			t.Errorf("went back to %v", st.State)
		}
		// w1's last task in the network goes: so does the network.
		w.write(store.DeleteTask(w.store.View().Task("t1")))
		settle(10 * time.Millisecond)
		if len(n1.keys()) != 0 {
			t.Errorf("left over: %v", n1.keys())
		}
		if d := cmp.Diff([]string{"1 t2", "2 net", "4 net/t2", "5 net/web"}, n2.keys()); d != "" {
			t.Errorf("w2 (-want +got):\n%s", d)
		}
	})
}

func TestStopWaitsForTheBalancers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		w.network("net", false)
		w.service("web", "net")
		w.task("t1", "web", "w1", "net", 11)
		w.task("t2", "web", "w2", "net", 12)
		n1.observe("t1", cluster.Status{State: running, Serving: true})
		n2.observe("t2", cluster.Status{State: running, Serving: true})
		settle(time.Second)

		n2.fakeAgent.mu.Lock()
		n2.stuck = true // w2 does not acknowledge
		n2.fakeAgent.mu.Unlock()
		w.desire("t1", cluster.StateShutdown)
		settle(time.Second)
		if n1.item(cluster.ItemEndpoint, "net/t1").Endpoint.Serving || n1.item(cluster.ItemTask, "t1").Task.Desired != running {
			t.Error("w1 should have lost the endpoint and kept the task")
		}
		settle(1500 * time.Millisecond)
		if d := n1.item(cluster.ItemTask, "t1").Task.Desired; d != cluster.StateShutdown {
			t.Errorf("after 2 s the task is wanted %v", d)
		}
	})
}

func TestStopIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		w.network("net", false)
		w.service("web", "net")
		w.task("t1", "web", "w1", "net", 11)
		w.task("t2", "web", "w2", "net", 12)
		n1.observe("t1", cluster.Status{State: running, Serving: true})
		settle(time.Second)
		w.desire("t1", cluster.StateRemove)
		settle(100 * time.Millisecond)
		if d := n1.item(cluster.ItemTask, "t1").Task.Desired; d != cluster.StateRemove {
			t.Errorf("wanted %v", d)
		}
		if n2.item(cluster.ItemEndpoint, "net/t1").Endpoint.Serving {
			t.Error("w2 still sends connections")
		}
		// A task that never served is told at once.
		w.desire("t2", cluster.StateShutdown)
		settle(time.Millisecond)
		if d := n2.item(cluster.ItemTask, "t2").Task.Desired; d != cluster.StateShutdown {
			t.Errorf("wanted %v", d)
		}
	})
}

func TestNodeDownAndBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		w.network("net", false)
		w.service("web", "net")
		w.task("t1", "web", "w1", "net", 11)
		w.task("t2", "web", "w2", "net", 12)
		n1.observe("t1", cluster.Status{State: running, Serving: true})
		settle(time.Minute)
		if w.state("w1") != swarm.NodeStateReady {
			t.Fatal("a live node was taken for down")
		}
		entries := w.entries()
		settle(time.Minute)
		if w.entries() != entries {
			t.Errorf("a quiet minute cost %d log entries", w.entries()-entries)
		}
		n1.stop()
		settle(9 * time.Second)
		if w.state("w1") != swarm.NodeStateReady {
			t.Error("down too early")
		}
		settle(7 * time.Second)
		if n := w.store.View().Node("w1"); n.Status.State != swarm.NodeStateDown || n.Status.Message != "heartbeat failure" {
			t.Errorf("%+v", n.Status)
		}
		if n2.item(cluster.ItemEndpoint, "net/t1").Endpoint.Serving {
			t.Error("a task of a lost node serves")
		}
		w.node("w1", worker, "m1:2377")
		settle(time.Second)
		if n := w.store.View().Node("w1"); n.Status.State != swarm.NodeStateReady || n.Status.Message != "" {
			t.Errorf("%+v", n.Status)
		}
	})
}

func TestShorterPeriod(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		settle(time.Minute)
		c := *w.store.View().Cluster()
		c.Spec = &swarm.Spec{Dispatcher: swarm.DispatcherConfig{HeartbeatPeriod: 500 * time.Millisecond}}
		w.write(store.PutCluster(&c))
		for range 100 {
			settle(100 * time.Millisecond)
			if w.state("w1") != swarm.NodeStateReady {
				t.Fatal("a live node was taken for down")
			}
		}
		w.addNode("w8", worker) // one that knows nothing but the short period
		n := w.node("w8", worker, "m1:2377")
		settle(10 * time.Second)
		if w.state("w8") != swarm.NodeStateReady || n.completes() != 1 {
			t.Errorf("%v after %d sessions", w.state("w8"), n.completes())
		}
	})
}

func TestGossipAndProbe(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, _ := oneLeader(w)
		n1.stop()
		w.suspect(true, "w1") // the host answers: only the daemon is gone
		settle(5 * time.Second)
		if w.state("w1") != swarm.NodeStateReady {
			t.Error("a restarting daemon was taken for a lost host")
		}
		w.suspect(false, "w1")
		settle(2 * time.Second)
		if n := w.store.View().Node("w1"); n.Status.State != swarm.NodeStateDown {
			t.Errorf("a lost host is %v", n.Status.State)
		}
	})
}

func TestChangeOfLeader(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for _, id := range []string{"m1", "m2"} {
			w.addNode(id, manager)
		}
		for _, id := range []string{"w1", "w2", "w3"} {
			w.addNode(id, worker)
		}
		m1, m2 := w.manager("m1"), w.manager("m2")
		stop := w.lead(m1)
		n1, n2 := w.node("w1", worker, "m2:2377"), w.node("w2", worker, "m1:2377")
		n3 := w.node("w3", worker, "m1:2377")
		settle(time.Second)
		if w.state("w1") != swarm.NodeStateReady {
			t.Fatal("w1 was not redirected to the leader")
		}
		n3.stop()
		settle(20 * time.Second)
		w.service("web", "")
		w.task("t1", "web", "w1", "", 1)
		n1.observe("t1", cluster.Status{State: cluster.StatePreparing})
		settle(time.Second)
		n2.stop()
		stop()
		w.mu.Lock()
		w.cut["m1:2377"] = true
		w.mu.Unlock()
		w.lead(m2)
		synctest.Wait()
		if w.state("w1") != swarm.NodeStateUnknown || w.state("w3") != swarm.NodeStateDown {
			t.Errorf("w1 %v, w3 %v", w.state("w1"), w.state("w3"))
		}
		settle(4 * time.Second)
		if w.state("w1") != swarm.NodeStateReady || w.state("w2") != swarm.NodeStateUnknown {
			t.Errorf("w1 %v, w2 %v", w.state("w1"), w.state("w2"))
		}
		if st := w.store.View().Task("t1").Status.State; st != cluster.StatePreparing {
			t.Errorf("the soft status was not reported again: %v", st)
		}
		if n1.told().Leader != "m2" || len(n1.told().Managers) != 2 || len(n1.told().GossipKey) != 32 {
			t.Errorf("w1 was told %+v", n1.session)
		}
		settle(20 * time.Second)
		if w.state("w2") != swarm.NodeStateUnknown {
			t.Errorf("w2 %v before the grace was over", w.state("w2"))
		}
		settle(10 * time.Second)
		if w.state("w2") != swarm.NodeStateDown {
			t.Errorf("w2 %v after the grace", w.state("w2"))
		}
	})
}

func TestNewNodeIsToldOnceItHasAName(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		w.addNode("w9", worker)
		w.lag = time.Second
		n := w.node("w9", worker, "m1:2377")
		settle(900 * time.Millisecond)
		if n.told().Leader != "" {
			t.Error("it has joined, and nobody can name it")
		}
		settle(time.Second)
		if n.told().Leader == "" || w.store.View().Node("w9").Description == nil {
			t.Errorf("it is named, and was told %+v", n.told())
		}
	})
}

func TestRegistrationsAreLimited(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		w.addNode("w9", worker)
		for range 4 {
			n := w.node("w9", worker, "m1:2377")
			settle(300 * time.Millisecond)
			n.stop()
			settle(300 * time.Millisecond)
		}
		n := w.node("w9", worker, "m1:2377")
		settle(time.Second)
		if len(n.losses()) == 0 || !strings.Contains(n.losses()[0].Error(), "rate limit") {
			t.Errorf("was not refused: %v", n.losses())
		}
		settle(15 * time.Second)
		if n.completes() == 0 {
			t.Error("was never let in again")
		}
	})
}

func TestStatusOfAnothersTask(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, _ := oneLeader(w)
		w.service("web", "")
		w.task("t2", "web", "w2", "", 1)
		n1.observe("t2", cluster.Status{State: running})
		settle(time.Second)
		if len(n1.losses()) == 0 || !errors.Is(n1.losses()[0], errdefs.ErrPermissionDenied) {
			t.Errorf("%v", n1.losses())
		}
		if st := w.store.View().Task("t2").Status.State; st != cluster.StateAssigned {
			t.Errorf("state %v", st)
		}
	})
}

func TestHostileStatus(t *testing.T) {
	for _, st := range []cluster.State{0, 1, cluster.StateRemove, cluster.StateOrphaned, 9999} {
		if err := checkStatus(&cluster.Status{State: st}); err == nil {
			t.Errorf("state %d was taken", st)
		}
	}
	st := cluster.Status{State: cluster.StateFailed, Err: strings.Repeat("x", 1<<20), Serving: true}
	if err := checkStatus(&st); err != nil || len(st.Err) > maxText || st.Serving {
		t.Errorf("%v, %d, %v", err, len(st.Err), st.Serving)
	}
}

func TestRemovedNode(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, _ := oneLeader(w)
		c := *w.store.View().Cluster()
		c.RemovedNodes = map[string]time.Time{"w1": time.Now().Add(time.Hour)}
		w.write(store.DeleteNode(w.store.View().Node("w1")), store.PutCluster(&c))
		settle(10 * time.Second)
		if len(n1.losses()) < 2 || !errors.Is(n1.losses()[len(n1.losses())-1], errdefs.ErrPermissionDenied) {
			t.Errorf("%v", n1.losses())
		}
		csr, _, _ := pki.NewRequest()
		if _, err := n1.client.Renew(t.Context(), csr); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("its certificate was renewed: %v", err)
		}
	})
}

func TestCompletePlusChangesIsComplete(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		w.network("a", false)
		w.network("b", false)
		w.service("s1", "a")
		w.service("s2", "b")
		step := 0
		for _, net := range []string{"a", "b", "a", "b", "b", "a"} {
			for _, node := range []string{"w1", "w2"} {
				step++
				id := "t" + string(rune('a'+step))
				w.task(id, map[string]string{"a": "s1", "b": "s2"}[net], node, net, byte(10+step))
				if step%3 == 0 {
					first := w.store.View().Tasks()[0]
					w.write(store.DeleteTask(first))
				}
				if step%4 == 0 {
					settle(time.Millisecond)
				}
			}
		}
		for len(w.store.View().TasksOn("w1")) > 1 {
			w.write(store.DeleteTask(w.store.View().TasksOn("w1")[0]))
			settle(time.Millisecond)
		}
		settle(time.Second)
		for id, n := range map[string]*fakeNode{"w1": n1, "w2": n2} {
			p := newPlanner(n.client.codec.enc.Marshal)
			if err := p.plan(w.store.View(), func(*cluster.Task) bool { return false }); err != nil {
				t.Fatal(err)
			}
			all, complete := p.next(id, &cursor{})
			var want []string
			for _, it := range all {
				want = append(want, itemKey(cluster.Item{Kind: it.Kind, ID: it.ID}))
			}
			slices.Sort(want)
			if d := cmp.Diff(want, n.keys()); d != "" || !complete || n.completes() != 1 {
				t.Errorf("%s after %d complete sets (-want +got):\n%s", id, n.completes(), d)
			}
		}
	})
}
