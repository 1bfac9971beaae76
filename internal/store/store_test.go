package store

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

var t0 = time.Date(2026, 11, 20, 10, 0, 0, 123, time.UTC)

// log applies entries as raftlog does: through the codec, each with the next number.
type log struct {
	t testing.TB
	*Store
}

func newLog(t testing.TB) *log { return &log{t, New()} }

func (l *log) try(changes ...Change) error {
	l.t.Helper()
	i := l.View().Index() + 1
	b, err := EncodeEntry(Entry{At: t0.Add(time.Duration(i) * time.Second), Changes: changes})
	if err != nil {
		l.t.Fatal(err)
	}
	e, err := DecodeEntry(b)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.Apply(i, e)
}

func (l *log) do(changes ...Change) {
	l.t.Helper()
	if err := l.try(changes...); err != nil {
		l.t.Fatal(err)
	}
}

func service(id, name, image string) *cluster.Service {
	return &cluster.Service{ID: id, Spec: serviceSpec(name, image)}
}

func serviceSpec(name, image string) *swarm.ServiceSpec {
	n := uint64(2)
	return &swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &n}},
	}
}

func task(id, service string, spec uint64, slot int) *cluster.Task {
	return &cluster.Task{
		ID: id, ServiceID: service, SpecVersion: spec, Slot: slot, NodeID: "n1", Desired: cluster.StateRunning,
		Networks: []cluster.Attachment{{NetworkID: "net1", Addr: netip.MustParseAddr("10.0.0.5"), Aliases: []string{"web"}}},
		Status:   cluster.Status{State: cluster.StateAssigned},
	}
}

func names(tasks []*cluster.Task) (out []string) {
	for _, t := range tasks {
		out = append(out, t.ID)
	}
	return out
}

func TestEntryIsWholeOrNothing(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")))
	before := l.View()
	err := l.try(CreateNetwork(&cluster.Network{ID: "x", Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "net"}}}),
		CreateService(service("s2", "web", "b")))
	if !errdefs.IsAlreadyExists(err) || err.Error() != "name conflicts with an existing object: service web already exists" {
		t.Fatalf("second service of a name: %v", err)
	}
	if l.View().Network("x") != nil || l.View().Service("s2") != nil {
		t.Error("a refused entry left something behind")
	}
	if l.View().Index() != before.Index()+1 {
		t.Error("a refused entry has no number")
	}
	if got := before.Service("s1"); got.Version != 1 || !got.CreatedAt.Equal(t0.Add(time.Second)) {
		t.Errorf("stamps: %+v", got.Meta)
	}
}

func TestStaleWritesAreRefused(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")))
	old := l.View().Service("s1")
	n := *old
	n.AllocErr = "x"
	l.do(UpdateService(&n))
	for what, c := range map[string]Change{
		"update": UpdateService(old), "delete": DeleteService(old),
		"update of a task that is gone":  UpdateTask(&cluster.Task{ID: "gone", Wants: 3}),
		"task of a service that is gone": CreateTask(task("t1", "nosuch", 1, 1)),
	} {
		if err := l.try(c); !errors.Is(err, cluster.ErrStale) {
			t.Errorf("%s: %v, want ErrStale", what, err)
		}
	}
	if err := l.try(Change{Op: OpDelete, Kind: KindNode, ID: "nosuch"}); !errdefs.IsNotFound(err) {
		t.Errorf("delete of what never was: %v", err)
	}
	l.do(DeleteService(l.View().Service("s1")))
	if l.View().ServiceByName("web") != nil {
		t.Error("the name is still taken")
	}
}

func TestSpecVersionsLiveAsLongAsTheyAreReferredTo(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")))
	l.do(CreateTask(task("t1", "s1", 1, 1)))
	update := func(image string) {
		s := *l.View().Service("s1")
		s.Previous, s.Spec = s.Spec, serviceSpec("web", image)
		l.do(UpdateService(&s))
	}
	update("b") // 3
	same := *l.View().Service("s1")
	same.AllocErr = "only this"
	l.do(UpdateService(&same))
	if s := l.View().Service("s1"); s.SpecVersion != 3 || s.PrevVersion != 1 {
		t.Fatalf("versions %d, %d; want 3, 1", s.SpecVersion, s.PrevVersion)
	}
	update("c") // 5
	if s := l.View().Service("s1"); s.SpecVersion != 5 || s.PrevVersion != 3 {
		t.Fatalf("versions %d, %d; want 5, 3", s.SpecVersion, s.PrevVersion)
	}
	if sp := l.View().SpecOf("s1", 1); sp == nil || sp.Spec.TaskTemplate.ContainerSpec.Image != "a" {
		t.Fatalf("the spec of a task is gone: %v", sp)
	}
	check := func(want ...bool) {
		t.Helper()
		for i, v := range []uint64{1, 3, 5} {
			if got := l.View().SpecOf("s1", v) != nil; got != want[i] {
				t.Errorf("version %d kept: %v, want %v", v, got, want[i])
			}
		}
	}
	check(true, true, true)
	l.do(DeleteTask(l.View().Task("t1")))
	check(false, true, true)
	l.do(CreateTask(task("t2", "s1", 5, 1)))
	l.do(DeleteService(l.View().Service("s1")))
	check(false, false, true)
	l.do(DeleteTask(l.View().Task("t2")))
	check(false, false, false)
}

func TestStatusNeverGoesBack(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")))
	l.do(CreateTask(task("t1", "s1", 1, 1)))
	set := func(s cluster.State) {
		t.Helper()
		l.do(SetStatus("t1", cluster.Status{State: s, At: t0}))
	}
	set(cluster.StateRunning)
	before := l.View().Task("t1")
	set(cluster.StateStarting)
	set(cluster.StateRunning)
	if l.View().Task("t1") != before {
		t.Error("a status that says nothing new changed the task")
	}
	if before.Wants != 2 || before.Version != 3 {
		t.Errorf("wants %d, version %d; want 2, 3", before.Wants, before.Version)
	}
	set(cluster.StateFailed)
	set(cluster.StateOrphaned)
	if got := l.View().Task("t1").Status.State; got != cluster.StateFailed {
		t.Errorf("a final state became %v", got)
	}
	l.do(SetStatus("nosuch", cluster.Status{State: cluster.StateRunning}))
	// One that the managers stop because it no longer fits was rejected in the end.
	misfit := task("t2", "s1", 1, 2)
	misfit.Rejected = "no longer fits"
	l.do(CreateTask(misfit))
	l.do(SetStatus("t2", cluster.Status{State: cluster.StateRunning}))
	if got := l.View().Task("t2").Status; got.State != cluster.StateRunning || got.Err != "" {
		t.Errorf("while it runs: %+v", got)
	}
	l.do(SetStatus("t2", cluster.Status{State: cluster.StateShutdown}))
	if got := l.View().Task("t2").Status; got.State != cluster.StateRejected || got.Err != "no longer fits" {
		t.Errorf("when it has ended: %+v", got)
	}
	// A loop's write leaves the status alone and does not conflict with it.
	n := *before
	n.Desired = cluster.StateShutdown
	l.do(UpdateTask(&n))
	if got := l.View().Task("t1"); got.Status.State != cluster.StateFailed || got.Desired != cluster.StateShutdown {
		t.Errorf("after the loop's write: %+v", got)
	}
}

func TestSoftStatusesAreShownAndForgotten(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")))
	l.do(CreateTask(task("t1", "s1", 1, 1)))
	l.do(CreateNode(&cluster.Node{ID: "n1", Spec: &swarm.NodeSpec{}, Status: cluster.NodeStatus{State: swarm.NodeStateReady}}))
	state := func() cluster.State { return l.View().Task("t1").Status.State }
	l.Observe("t1", cluster.Status{State: cluster.StatePreparing, At: t0})
	l.Observe("t1", cluster.Status{State: cluster.StateAccepted, At: t0})
	if state() != cluster.StatePreparing || l.View().TasksOf("s1")[0].Status.State != cluster.StatePreparing {
		t.Fatalf("shown: %v", state())
	}
	l.do(SetStatus("t1", cluster.Status{State: cluster.StateAccepted, At: t0}))
	if state() != cluster.StatePreparing {
		t.Errorf("an earlier logged status hides the soft one: %v", state())
	}
	var snap bytes.Buffer
	if err := l.Snapshot(&snap); err != nil {
		t.Fatal(err)
	}
	other := New()
	if err := other.Restore(&snap); err != nil {
		t.Fatal(err)
	}
	if got := other.View().Task("t1").Status.State; got != cluster.StateAccepted {
		t.Errorf("a snapshot holds the soft %v", got)
	}
	l.ForgetObserved()
	if state() != cluster.StateAccepted {
		t.Errorf("after forgetting: %v", state())
	}

	node := func() swarm.NodeState { return l.View().Node("n1").Status.State }
	l.ObserveNode("n1", cluster.NodeStatus{State: swarm.NodeStateUnknown})
	n := *l.View().Node("n1")
	n.Spec = &swarm.NodeSpec{Availability: swarm.NodeAvailabilityDrain}
	l.do(UpdateNode(&n))
	if node() != swarm.NodeStateUnknown {
		t.Errorf("a write of the spec ends the soft state: %v", node())
	}
	l.ObserveNode("n1", cluster.NodeStatus{})
	if node() != swarm.NodeStateReady {
		t.Errorf("UNKNOWN was logged: %v", node())
	}
	l.ObserveNode("n1", cluster.NodeStatus{State: swarm.NodeStateUnknown})
	n = *l.View().Node("n1")
	n.Status.State = swarm.NodeStateDown
	l.do(UpdateNode(&n))
	if node() != swarm.NodeStateDown {
		t.Errorf("a logged change of state does not show: %v", node())
	}
}

func TestListsAreSorted(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a")), CreateService(service("s2", "db", "a")))
	for i, slot := range []int{3, 1, 2, 1} {
		l.do(CreateTask(task(fmt.Sprintf("t%d", i), "s1", 1, slot)))
	}
	g := task("g", "s2", 1, 0)
	g.NodeID = "n2"
	l.do(CreateTask(g))
	v := l.View()
	for _, c := range []struct {
		what      string
		got, want []string
	}{
		{"of the service", names(v.TasksOf("s1")), []string{"t1", "t3", "t2", "t0"}},
		{"on the node", names(v.TasksOn("n1")), []string{"t0", "t1", "t2", "t3"}},
		{"on the other node", names(v.TasksOn("n2")), []string{"g"}},
		{"in the network", names(v.TasksIn("net1")), []string{"g", "t0", "t1", "t2", "t3"}},
		{"all", names(v.Tasks()), []string{"g", "t0", "t1", "t2", "t3"}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("tasks %s: %s", c.what, d)
		}
	}
	moved := *v.Task("t1")
	moved.NodeID, moved.Networks = "n2", nil
	l.do(UpdateTask(&moved))
	if d := cmp.Diff([]string{"g", "t1"}, names(l.View().TasksOn("n2"))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"g", "t0", "t2", "t3"}, names(l.View().TasksIn("net1"))); d != "" {
		t.Error(d)
	}
	if len(v.TasksOn("n1")) != 4 {
		t.Error("an old view has changed")
	}
}

func TestWatchMergesAndFilters(t *testing.T) {
	l := newLog(t)
	tasks, end := l.Watch(KindTask)
	defer end()
	all, endAll := l.Watch()
	l.do(CreateService(service("s1", "web", "a")))
	l.do(CreateService(service("s2", "db", "a")))
	if len(tasks) != 0 || len(all) != 1 {
		t.Fatalf("signals: tasks %d, all %d; want 0, 1", len(tasks), len(all))
	}
	<-all
	endAll()
	l.do(CreateTask(task("t1", "s1", 1, 1)))
	if len(tasks) != 1 || len(all) != 0 {
		t.Fatalf("signals: tasks %d, all %d; want 1, 0", len(tasks), len(all))
	}
}

func everything(t testing.TB) *log {
	l := newLog(t)
	l.do(PutCluster(&cluster.Cluster{ID: "c", Spec: &swarm.Spec{}, DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		RemovedNodes: map[string]time.Time{"x": t0}}),
		CreateNode(&cluster.Node{ID: "n1", Spec: &swarm.NodeSpec{}, DataAddr: netip.MustParseAddr("10.1.1.1"), Manager: &cluster.Manager{RaftID: "a"}}),
		CreateNetwork(&cluster.Network{ID: "net1", Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "ingress"}}, Subnet: netip.MustParsePrefix("10.0.0.0/24")}),
		CreateSecret(&cluster.Secret{ID: "sec", Spec: &swarm.SecretSpec{Annotations: swarm.Annotations{Name: "s"}, Data: []byte("x")}}),
		CreateConfig(&cluster.Config{ID: "cfg", Spec: &swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "c"}, Data: []byte("x")}}),
		CreateService(service("s1", "web", "a")))
	l.do(CreateTask(task(cluster.NewID(), "s1", 1, 1)), CreateTask(&cluster.Task{ID: "att", Rejected: "why", Attach: &cluster.Attach{NetworkID: "net1", ContainerID: "abc", Wanted: netip.MustParseAddr("10.0.0.9"), Names: []string{"plain"}}}))
	s := *l.View().Service("s1")
	s.Previous, s.Spec = s.Spec, serviceSpec("web", "b")
	s.VIPs = []cluster.VIP{{NetworkID: "net1"}, {NetworkID: "net2", Addr: netip.MustParseAddr("10.0.0.2")}}
	l.do(UpdateService(&s))
	s = *l.View().Service("s1")
	s.Previous, s.Spec = s.Spec, serviceSpec("web", "c")
	l.do(UpdateService(&s))
	st := cluster.Status{State: cluster.StateRunning, At: t0, Message: "started\xff", PID: 12, Serving: true,
		ContainerID: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
		Ports:       []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: "host"}}}
	for _, task := range l.View().TasksOf("s1") {
		l.do(SetStatus(task.ID, st))
	}
	return l
}

var same = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

func TestSnapshotRoundTrip(t *testing.T) {
	l := everything(t)
	var b bytes.Buffer
	if err := l.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	other := New()
	if err := other.Restore(bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	a, o := l.View(), other.View()
	for what, d := range map[string]string{
		"cluster": cmp.Diff(a.Cluster(), o.Cluster(), same), "nodes": cmp.Diff(a.Nodes(), o.Nodes(), same),
		"services": cmp.Diff(a.Services(), o.Services(), same), "tasks": cmp.Diff(a.Tasks(), o.Tasks(), same),
		"networks": cmp.Diff(a.Networks(), o.Networks(), same), "secrets": cmp.Diff(a.Secrets(), o.Secrets(), same),
		"configs": cmp.Diff(a.Configs(), o.Configs(), same), "index": cmp.Diff(a.Index(), o.Index()),
		"old spec": cmp.Diff(a.SpecOf("s1", 1), o.SpecOf("s1", 1), same),
	} {
		if d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	if a.SpecOf("s1", 1) == nil {
		t.Error("the task's spec is not there to be compared")
	}
	for n := range whole {
		if err := New().Restore(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("a snapshot cut to %d of %d bytes is taken", n, len(whole))
		}
	}
	// Both go on alike.
	l2 := &log{t, other}
	for _, x := range []*log{l, l2} {
		x.do(DeleteTask(x.View().TasksOf("s1")[0]))
		if x.View().SpecOf("s1", 1) != nil {
			t.Error("a spec outlives its last task")
		}
	}
}

func TestPackedIDs(t *testing.T) {
	for _, id := range []string{cluster.NewID(), "", "short", "zzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000", "ABCDEFGHIJKLMNOPQRSTUVWXY"} {
		b, err := encMode.Marshal(packedID(id))
		if err != nil {
			t.Fatal(err)
		}
		var got packedID
		if err := decMode.Unmarshal(b, &got); err != nil || string(got) != id {
			t.Errorf("%q came back as %q, %v", id, got, err)
		}
	}
}

// TestLogPerTask holds the budget of 0.4 KB of log for a task from its creation
// to RUNNING.
func TestLogPerTask(t *testing.T) {
	const n = 100
	svc, node, net := cluster.NewID(), cluster.NewID(), cluster.NewID()
	create, run := Entry{At: time.Now()}, Entry{At: time.Now()}
	for i := range n {
		tk := task(cluster.NewID(), svc, 100000, i+1)
		tk.NodeID, tk.Networks[0].NetworkID, tk.Networks[0].Aliases = node, net, nil
		tk.Status = cluster.Status{State: cluster.StateAssigned, At: time.Now(), Message: "scheduler assigned task to node"}
		create.Changes = append(create.Changes, CreateTask(tk))
		run.Changes = append(run.Changes, SetStatus(tk.ID, cluster.Status{State: cluster.StateRunning, At: time.Now(), Message: "started",
			ContainerID: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", PID: 123456, Serving: true}))
	}
	a, err1 := EncodeEntry(create)
	b, err2 := EncodeEntry(run)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	per := (len(a) + len(b)) / n
	t.Logf("%d bytes of log a task (%d to create, %d for RUNNING)", per, len(a)/n, len(b)/n)
	if per > 400 {
		t.Errorf("%d bytes of log a task; the budget is 400", per)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	b, err := EncodeEntry(Entry{At: t0, Changes: []Change{CreateTask(task("t1", "s1", 1, 1)), CreateService(service("s1", "web", "a")),
		SetStatus("t1", cluster.Status{State: cluster.StateRunning})}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		_ = New().Apply(1, e) // whatever it says: no panic
		again, err := EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeEntry(again); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	var b bytes.Buffer
	if err := everything(f).Snapshot(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New()
		if s.Restore(bytes.NewReader(b)) == nil {
			if err := s.Snapshot(&bytes.Buffer{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
