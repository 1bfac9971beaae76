package swarm

import (
	"maps"
	"strings"
	"testing"
	"time"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

const (
	worker    = api.NodeRoleWorker
	asManager = api.NodeRoleManager
)

func (h *host) view() store.View {
	h.t.Helper()
	mgr, err := h.manager()
	if err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
	return mgr.store.View()
}

// leads reports whether h leads.
func (h *host) leads() bool {
	mgr, err := h.manager()
	return err == nil && mgr.raft.Leading()
}

func leaderOf(t *testing.T, hosts ...*host) *host {
	t.Helper()
	var found *host
	eventually(t, 10*time.Second, "a leader", func() (bool, any) {
		for _, h := range hosts {
			if h.leads() {
				found = h
				return true, nil
			}
		}
		return false, nil
	})
	return found
}

// write proposes through whichever of the hosts leads.
func write(t *testing.T, hosts []*host, change func(store.View) store.Change) {
	t.Helper()
	eventually(t, 15*time.Second, "a write", func() (bool, any) {
		h := leaderOf(t, hosts...)
		mgr, err := h.Node.manager()
		if err != nil {
			return false, err
		}
		err = mgr.raft.Propose(t.Context(), change(mgr.store.View()))
		return err == nil, err
	})
}

func expectNodes(t *testing.T, h *host, within time.Duration, want map[string]string) {
	t.Helper()
	eventually(t, within, "nodes as "+h.name+" sees them", func() (bool, any) {
		got := h.nodes()
		return maps.Equal(got, want), got
	})
}

// setRole is node promote or demote.
func setRole(t *testing.T, hosts []*host, id string, role api.NodeRole) {
	t.Helper()
	write(t, hosts, func(v store.View) store.Change {
		n := *v.Node(id)
		spec := *n.Spec
		spec.Role = role
		n.Spec = &spec
		return store.UpdateNode(&n)
	})
}

func quick() api.Spec {
	return api.Spec{Dispatcher: api.DispatcherConfig{HeartbeatPeriod: time.Second}}
}

func TestLifeOfASwarm(t *testing.T) {
	t.Parallel()
	var h [5]*host
	for i := range h {
		h[i] = newHost(t, "51.0", i+1)
	}
	m1, m2, m3, w1, w2 := h[0], h[1], h[2], h[3], h[4]
	if _, err := m1.Control(); err == nil || !strings.HasPrefix(err.Error(), `This node is not a swarm manager. Use "docker swarm init"`) {
		t.Errorf("before init: %v", err)
	}
	start := time.Now()
	m1.init(quick())
	t.Logf("init took %v", time.Since(start))
	if _, err := m1.Init(t.Context(), api.InitRequest{}); err != errAlready {
		t.Errorf("init again: %v", err)
	}
	for _, x := range []*host{m2, m3} {
		start = time.Now()
		x.join(m1, asManager)
		t.Logf("a manager's join took %v", time.Since(start))
	}
	for _, x := range []*host{w1, w2} {
		start = time.Now()
		x.join(m2, worker) // through a follower
		t.Logf("a worker's join took %v", time.Since(start))
	}
	whole := map[string]string{"host1": "manager ready leader", "host2": "manager ready reachable", "host3": "manager ready reachable",
		"host4": "worker ready", "host5": "worker ready"}
	expectNodes(t, m1, 5*time.Second, whole)
	if _, err := w1.Control(); err != errWorker {
		t.Errorf("a worker: %v", err)
	}
	if err := w1.tryJoin(m1, m1.token(worker)); err != errAlready {
		t.Errorf("join again: %v", err)
	}
	info := m2.Info(t.Context())
	if info.LocalNodeState != api.LocalNodeStateActive || !info.ControlAvailable || info.Nodes != 5 || info.Managers != 3 || len(info.RemoteManagers) != 3 || info.NodeAddr != m2.ip {
		t.Errorf("info of a manager: %+v", info)
	}
	if info := w1.Info(t.Context()); info.ControlAvailable || len(info.RemoteManagers) != 3 || info.Error != "" {
		t.Errorf("info of a worker: %+v", info)
	}

	// A service runs.
	svc := &cluster.Service{ID: cluster.NewID(), Spec: &api.ServiceSpec{
		Annotations: api.Annotations{Name: "web"}, Mode: api.ServiceMode{Replicated: &api.ReplicatedService{Replicas: new(uint64(5))}},
		TaskTemplate: api.TaskSpec{ContainerSpec: &api.ContainerSpec{Image: "busybox:1"}},
	}}
	managers := []*host{m1, m2, m3}
	write(t, managers, func(store.View) store.Change { return store.CreateService(svc) })
	eventually(t, 10*time.Second, "one task a node", func() (bool, any) {
		n := [5]int{}
		for i, x := range h {
			n[i] = x.running()
		}
		return n == [5]int{1, 1, 1, 1, 1}, n
	})

	// The leader's host is lost.
	start = time.Now()
	m1.kill()
	rest := []*host{m2, m3}
	lead := leaderOf(t, rest...)
	write(t, rest, func(v store.View) store.Change {
		s := *v.Service(svc.ID)
		return store.UpdateService(&s)
	})
	t.Logf("a write after the leader was lost: %v", time.Since(start))
	eventually(t, 15*time.Second, "the lost host's task elsewhere", func() (bool, any) {
		n := m2.running() + m3.running() + w1.running() + w2.running()
		return n == 5, n
	})
	t.Logf("its task runs elsewhere: %v", time.Since(start))
	if got := lead.nodes()["host1"]; got != "manager down unreachable" {
		t.Errorf("the lost host is %q", got)
	}
	m1.start()
	eventually(t, 10*time.Second, "the lost host is back", func() (bool, any) {
		got := lead.nodes()["host1"]
		return got == "manager ready reachable" || got == "manager ready leader", got
	})

	// Demote and promote.
	victim := m2
	if victim == lead {
		victim = m3
	}
	id := victim.NodeID()
	setRole(t, managers, id, worker)
	eventually(t, 10*time.Second, "demotion", func() (bool, any) {
		_, err := victim.Control()
		got := lead.nodes()[victim.name]
		return err == errWorker && got == "worker ready", got
	})
	setRole(t, managers, id, asManager)
	eventually(t, 10*time.Second, "promotion", func() (bool, any) {
		_, err := victim.Control()
		got := lead.nodes()[victim.name]
		return err == nil && got == "manager ready reachable", got
	})

	// A daemon restarts: nobody notices.
	before := w1.running()
	w1.stop()
	w1.start()
	eventually(t, 10*time.Second, "w1 resumes", func() (bool, any) {
		info := w1.Info(t.Context())
		return info.LocalNodeState == api.LocalNodeStateActive && info.Error == "", info
	})
	if w1.running() != before || lead.nodes()["host4"] != "worker ready" {
		t.Errorf("after the restart %d tasks run, before %d; %v", w1.running(), before, lead.nodes())
	}

	// Leave.
	if err := w2.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := w2.Leave(t.Context(), false); err != errNoSwarm {
		t.Errorf("leave again: %v", err)
	}
	if lead.nodes()["host5"] != "worker down" || w2.running() != 0 {
		t.Errorf("after leaving: %v, %d tasks run", lead.nodes(), w2.running())
	}
	err := lead.Leave(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.") {
		t.Errorf("a manager leaves: %v", err)
	}
	if err := lead.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rest = nil
	for _, x := range managers {
		if x != lead {
			rest = append(rest, x)
		}
	}
	lead2 := leaderOf(t, rest...)
	eventually(t, 10*time.Second, "the leader that left is no member", func() (bool, any) {
		got := lead2.nodes()[lead.name]
		return got == "worker down", got
	})
	// It can join again.
	lead.join(lead2, asManager)
}
