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
	eventually(t, "a leader", func() (bool, any) {
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
	eventually(t, "a write", func() (bool, any) {
		h := leaderOf(t, hosts...)
		mgr, err := h.Node.manager()
		if err != nil {
			return false, err
		}
		err = mgr.raft.Propose(t.Context(), change(mgr.store.View()))
		return err == nil, err
	})
}

func expectNodes(t *testing.T, h *host, want map[string]string) {
	t.Helper()
	eventually(t, "nodes as "+h.name+" sees them", func() (bool, any) {
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

// five is a swarm of three managers and two workers.
type five struct {
	t        *testing.T
	h        [5]*host
	managers []*host
	w1, w2   *host
	service  string
}

func TestLifeOfASwarm(t *testing.T) {
	t.Parallel()
	f := &five{t: t}
	for i := range f.h {
		f.h[i] = newHost(t, "51.0", i+1)
	}
	f.managers, f.w1, f.w2 = f.h[:3], f.h[3], f.h[4]
	for _, step := range []func(){f.made, f.known, f.serviceRuns, f.leaderLost, f.rolesChange, f.daemonRestarts, f.workerLeaves, f.leaderLeaves} {
		step()
	}
}

// sees waits until the leader sees a node as wanted.
func (f *five) sees(name, want string) {
	f.t.Helper()
	eventually(f.t, name+" is "+want, func() (bool, any) {
		got := leaderOf(f.t, f.managers...).nodes()
		return got[name] == want, got
	})
}

// made makes the swarm.
func (f *five) made() {
	m1, m2 := f.h[0], f.h[1]
	start := time.Now()
	m1.init(quick())
	f.t.Logf("init took %v", time.Since(start))
	for _, x := range f.managers[1:] {
		start = time.Now()
		x.join(m1, asManager)
		f.t.Logf("a manager's join took %v", time.Since(start))
	}
	for _, x := range []*host{f.w1, f.w2} {
		start = time.Now()
		x.join(m2, worker) // through a follower
		if n := leaderOf(f.t, f.managers...).view().Node(x.NodeID()); n == nil || n.Description == nil {
			f.t.Errorf("%s has joined, and nobody can name it: %v", x.name, n)
		}
		f.t.Logf("a worker's join took %v", time.Since(start))
	}
}

// known is what the nodes know of the swarm and of themselves.
func (f *five) known() {
	m1, m2 := f.h[0], f.h[1]
	expectNodes(f.t, m1, map[string]string{"host1": "manager ready reachable", "host2": "manager ready reachable",
		"host3": "manager ready reachable", "host4": "worker ready", "host5": "worker ready"})
	if _, err := m1.Init(f.t.Context(), api.InitRequest{}); err != errAlready {
		f.t.Errorf("init again: %v", err)
	}
	if _, err := f.w1.Control(); err != errWorker {
		f.t.Errorf("a worker: %v", err)
	}
	if err := f.w1.tryJoin(m1, m1.token(worker)); err != errAlready {
		f.t.Errorf("join again: %v", err)
	}
	eventually(f.t, "info of a manager", func() (bool, any) {
		info := m2.Info(f.t.Context())
		return info.LocalNodeState == api.LocalNodeStateActive && info.ControlAvailable && info.Nodes == 5 && info.Managers == 3 &&
			len(info.RemoteManagers) == 3 && info.NodeAddr == m2.ip && info.Error == "", info
	})
	eventually(f.t, "info of a worker", func() (bool, any) {
		info := f.w1.Info(f.t.Context())
		return !info.ControlAvailable && len(info.RemoteManagers) == 3 && info.Error == "" && info.Nodes == 0, info
	})
}

// serviceRuns has every node run a task.
func (f *five) serviceRuns() {
	svc := &cluster.Service{ID: cluster.NewID(), Spec: &api.ServiceSpec{
		Annotations: api.Annotations{Name: "web"}, Mode: api.ServiceMode{Replicated: &api.ReplicatedService{Replicas: new(uint64(5))}},
		TaskTemplate: api.TaskSpec{ContainerSpec: &api.ContainerSpec{Image: "busybox:1"}},
	}}
	f.service = svc.ID
	write(f.t, f.managers, func(store.View) store.Change { return store.CreateService(svc) })
	eventually(f.t, "one task a node", func() (bool, any) {
		n := [5]int{}
		for i, x := range f.h {
			n[i] = x.running()
		}
		return n == [5]int{1, 1, 1, 1, 1}, n
	})
}

// leaderLost cuts the leader's power, and gives it back.
func (f *five) leaderLost() {
	lost := leaderOf(f.t, f.managers...)
	var rest []*host
	for _, x := range f.managers {
		if x != lost {
			rest = append(rest, x)
		}
	}
	start := time.Now()
	lost.kill()
	write(f.t, rest, func(v store.View) store.Change {
		s := *v.Service(f.service)
		return store.UpdateService(&s)
	})
	f.t.Logf("a write after the leader was lost: %v", time.Since(start))
	eventually(f.t, "the lost host's task elsewhere", func() (bool, any) {
		n := 0
		for _, x := range f.h {
			if x != lost {
				n += x.running()
			}
		}
		return n == 5, n
	})
	f.t.Logf("its task runs elsewhere: %v", time.Since(start))
	f.managers = rest
	f.sees(lost.name, "manager down unreachable")
	lost.start()
	f.managers = f.h[:3]
	f.sees(lost.name, "manager ready reachable")
}

// rolesChange demotes a manager and promotes it again.
func (f *five) rolesChange() {
	lead := leaderOf(f.t, f.managers...)
	victim := f.managers[0]
	if victim == lead {
		victim = f.managers[1]
	}
	id := victim.NodeID()
	setRole(f.t, f.managers, id, worker)
	f.sees(victim.name, "worker ready")
	eventually(f.t, "it is no manager", func() (bool, any) {
		_, err := victim.Control()
		return err == errWorker, err
	})
	setRole(f.t, f.managers, id, asManager)
	f.sees(victim.name, "manager ready reachable")
	eventually(f.t, "it is a manager", func() (bool, any) {
		_, err := victim.Control()
		return err == nil, err
	})
}

// daemonRestarts is a restart that nobody notices.
func (f *five) daemonRestarts() {
	before := f.w1.running()
	f.w1.stop()
	f.w1.start()
	eventually(f.t, "w1 resumes", func() (bool, any) {
		info := f.w1.Info(f.t.Context())
		return info.LocalNodeState == api.LocalNodeStateActive && info.Error == "", info
	})
	f.sees("host4", "worker ready")
	if f.w1.running() != before {
		f.t.Errorf("after the restart %d tasks run, before %d", f.w1.running(), before)
	}
}

func (f *five) workerLeaves() {
	if err := f.w2.Leave(f.t.Context(), false); err != nil {
		f.t.Fatal(err)
	}
	if err := f.w2.Leave(f.t.Context(), false); err != errNoSwarm {
		f.t.Errorf("leave again: %v", err)
	}
	f.sees("host5", "worker down")
	if n := f.w2.running(); n != 0 {
		f.t.Errorf("%d tasks run on a host that has left", n)
	}
}

// leaderLeaves takes the leader out, which needs force, and lets it join again.
func (f *five) leaderLeaves() {
	lead := leaderOf(f.t, f.managers...)
	err := lead.Leave(f.t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.") {
		f.t.Errorf("a manager leaves: %v", err)
	}
	if err := lead.Leave(f.t.Context(), true); err != nil {
		f.t.Fatal(err)
	}
	f.managers = nil
	for _, x := range f.h[:3] {
		if x != lead {
			f.managers = append(f.managers, x)
		}
	}
	f.sees(lead.name, "worker down")
	lead.join(leaderOf(f.t, f.managers...), asManager)
}
