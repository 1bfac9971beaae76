package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

// group is a Raft group of one store that all its managers share.
type group struct {
	store   *store.Store
	leader  string
	members []raftlog.Member
	lose    error // what the next proposal comes to
}

// seat is one manager's part in it.
type seat struct {
	*group
	id string
}

func (s seat) Leading() bool             { return s.leader == s.id }
func (s seat) Members() []raftlog.Member { return s.members }

func (s seat) Propose(_ context.Context, changes ...store.Change) error {
	if !s.Leading() {
		return cluster.ErrNotLeader
	}
	if err := s.lose; err != nil {
		s.lose = nil
		return err
	}
	b, err := store.EncodeEntry(store.Entry{At: time.Now(), Changes: changes})
	if err != nil {
		return err
	}
	e, err := store.DecodeEntry(b)
	if err != nil {
		return err
	}
	return s.store.Apply(s.store.View().Index()+1, e)
}

func (s seat) CheckRemove(_ context.Context, id string) error {
	alive := 0
	for _, m := range s.members {
		if m.ID != id && m.Reachable {
			alive++
		}
	}
	if alive < (len(s.members)-1)/2+1 {
		return precondition("can't remove member from the raft: this would result in a loss of quorum")
	}
	return nil
}

// swarmOf is two managers, m1 leading, on one group.
type swarmOf struct {
	*group
	apis map[string]*API
}

// Forward implements Forwarder.
func (s *swarmOf) Forward(ctx context.Context, name string, body []byte) ([]byte, error) {
	if s.leader == "" {
		return nil, cluster.Unavailablef("rpc error: code = Unknown desc = The swarm does not have a leader.")
	}
	return s.apis[s.leader].Handle(ctx, name, body)
}

func newSwarm(t testing.TB) *swarmOf {
	t.Helper()
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	changes, err := Bootstrap(Founding{
		ClusterID: cluster.NewID(), NodeID: "m1", Addr: "10.99.0.11:2377",
		Description: &swarm.NodeDescription{Hostname: "manager1"},
		RootCA:      cluster.RootCA{Cert: root.CertPEM(), Key: key, WorkerToken: pki.NewToken(root), ManagerToken: pki.NewToken(root)},
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &group{store: store.New(), leader: "m1", members: []raftlog.Member{{ID: "m1", Leader: true, Reachable: true, Voter: true}}}
	s := &swarmOf{group: g, apis: map[string]*API{}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for _, id := range []string{"m1", "m2"} {
		s.apis[id] = New(g.store, seat{g, id}, s, log)
	}
	if err := (seat{g, "m1"}).Propose(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *swarmOf) propose(t testing.TB, changes ...store.Change) {
	t.Helper()
	if err := (seat{s.group, s.leader}).Propose(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func webSpec(name string) swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "busybox:1", Args: []string{"sleep", "3600"}}},
	}
}

func published(spec swarm.ServiceSpec, ports ...swarm.PortConfig) swarm.ServiceSpec {
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: ports}
	return spec
}

// TestServiceErrors holds Docker's words and kinds; see transcripts 07, 11, 18.
func TestServiceErrors(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m1"]
	dup, err := a.CreateService(t.Context(), published(webSpec("dup"), swarm.PortConfig{TargetPort: 80, PublishedPort: 8099}), ServiceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const inv = "rpc error: code = InvalidArgument desc = "
	with := func(change func(*swarm.ServiceSpec)) swarm.ServiceSpec {
		spec := webSpec("x")
		change(&spec)
		return spec
	}
	host := swarm.PortConfigPublishModeHost
	for _, c := range []struct {
		spec swarm.ServiceSpec
		kind func(error) bool
		want string
	}{
		{webSpec("dup"), errdefs.IsAlreadyExists, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service dup already exists"},
		{published(webSpec("p2"), swarm.PortConfig{TargetPort: 81, PublishedPort: 8099}), errdefs.IsInvalidArgument, inv + "port '8099' is already in use by service 'dup' (" + dup.ID + ") as an ingress port"},
		{published(webSpec("p3"), swarm.PortConfig{TargetPort: 80, PublishedPort: 8099, PublishMode: host}), errdefs.IsInvalidArgument, inv + "port '8099' is already in use by service 'dup' (" + dup.ID + ") as an ingress port"},
		{webSpec("bad name"), errdefs.IsInvalidArgument, inv + "name must be valid as a DNS name component"},
		{webSpec("-x"), errdefs.IsInvalidArgument, inv + "name must be valid as a DNS name component"},
		{webSpec("a/b"), errdefs.IsInvalidArgument, inv + "name must be valid as a DNS name component"},
		{webSpec(strings.Repeat("a", 64)), errdefs.IsInvalidArgument, inv + "name must be 63 characters or fewer"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"foo"}} }), nil, "rpc error: code = Unknown desc = constraint expected one operator from ==, !="},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"== x"}} }), nil, "rpc error: code = Unknown desc = key '' is invalid"},
		{published(webSpec("pp"), swarm.PortConfig{TargetPort: 80, PublishedPort: 8100}, swarm.PortConfig{TargetPort: 81, PublishedPort: 8100}), errdefs.IsInvalidArgument, inv + "EndpointSpec: duplicate published ports provided"},
		{with(func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr", Ports: []swarm.PortConfig{{TargetPort: 80}}}
		}), errdefs.IsInvalidArgument, inv + "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"},
		{with(func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: "bogus"} }), errdefs.IsInvalidArgument, `invalid resolution mode: "bogus"`},
		{with(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "nosuch"}}
		}), errdefs.IsNotFound, "network nosuch not found"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "bogus"}} }), errdefs.IsInvalidArgument, `invalid MountType: "bogus"`},
		{with(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 1024}}
		}), errdefs.IsInvalidArgument, inv + "invalid memory value 1024: Must be at least 4MiB"},
		{with(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: -1e9}}
		}), errdefs.IsInvalidArgument, inv + "invalid cpu value -1: Must be at least 0.001"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "bogus"} }), errdefs.IsInvalidArgument, `invalid RestartCondition: "bogus"`},
		{with(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: ptr(-time.Second)}
		}), errdefs.IsInvalidArgument, inv + "TaskSpec: restart-delay cannot be negative"},
		{with(func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Order: "bogus"} }), errdefs.IsInvalidArgument, "unrecognized update order bogus"},
		{with(func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{FailureAction: "bogus"} }), errdefs.IsInvalidArgument, "unrecognized update failure action bogus"},
		{with(func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{MaxFailureRatio: 2} }), errdefs.IsInvalidArgument, inv + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "" }), errdefs.IsInvalidArgument, inv + "ContainerSpec: image reference must be provided"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "UPPER:case" }), errdefs.IsInvalidArgument, inv + `ContainerSpec: "UPPER:case" is not a valid repository/tag`},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil }), errdefs.IsInvalidArgument, "mismatched Runtime and *Spec fields"},
		{with(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "nope", SecretName: "nope", File: &swarm.SecretReferenceFileTarget{Name: "f"}}}
		}), errdefs.IsInvalidArgument, inv + "secret not found: nope"},
		{with(func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: ptr(uint64(1 << 62))}
		}), errdefs.IsInvalidArgument, inv + "Number of replicas must not be larger than 1000000"},
		{with(func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Dir = strings.Repeat("x", maxSpec) }), errdefs.IsInvalidArgument, "the service's spec is larger than 1048576 bytes"},
		{with(func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: make([]swarm.PortConfig, 5000)}
		}), errdefs.IsInvalidArgument, inv + "EndpointSpec: 5000 ports are more than the 1024 a service may publish"},
		{with(func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 70000}}}
		}), errdefs.IsInvalidArgument, inv + "EndpointSpec: the port 0:70000 is not between 1 and 65535"},
		{with(func(s *swarm.ServiceSpec) { s.Mode.GlobalJob = &swarm.GlobalJob{} }), errdefs.IsNotImplemented, "the service mode global-job (--mode) is not built yet"},
	} {
		_, err := a.CreateService(t.Context(), c.spec, ServiceOptions{})
		if err == nil || err.Error() != c.want || c.kind != nil && !c.kind(err) {
			t.Errorf("%.60s: %T %v, want %s", c.spec.Name, err, err, c.want)
		}
	}
	if got := len(s.store.View().Services()); got != 1 {
		t.Errorf("%d services after all the errors, want 1", got)
	}
}

func TestServiceLife(t *testing.T) {
	s := newSwarm(t)
	for _, id := range []string{"m1", "m2"} { // m2 forwards
		a, name := s.apis[id], "web-"+id
		created, err := a.CreateService(t.Context(), webSpec(name), ServiceOptions{RegistryAuth: "first"})
		if err != nil {
			t.Fatal(err)
		}
		svc, err := a.Service(t.Context(), name, true)
		if err != nil {
			t.Fatal(err)
		}
		want := swarm.ServiceSpec{
			Annotations: swarm.Annotations{Name: name, Labels: map[string]string{}},
			TaskTemplate: swarm.TaskSpec{
				ContainerSpec: &swarm.ContainerSpec{Image: "busybox:1", Args: []string{"sleep", "3600"}, Isolation: "default",
					StopGracePeriod: ptr(10 * time.Second), DNSConfig: &swarm.DNSConfig{}},
				Resources: &swarm.ResourceRequirements{}, Placement: &swarm.Placement{}, Runtime: "container",
				RestartPolicy: &swarm.RestartPolicy{Condition: "any", Delay: ptr(5 * time.Second), MaxAttempts: ptr(uint64(0))},
			},
			Mode:           swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: ptr(uint64(1))}},
			UpdateConfig:   &swarm.UpdateConfig{Parallelism: 1, FailureAction: "pause", Monitor: 5 * time.Second, Order: "stop-first"},
			RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "pause", Monitor: 5 * time.Second, Order: "stop-first"},
		}
		if d := cmp.Diff(want, svc.Spec); d != "" {
			t.Errorf("defaults: %s", d)
		}
		update := func(version uint64, image string, opts ServiceOptions) error {
			spec := webSpec(name)
			spec.TaskTemplate.ContainerSpec.Image = image
			_, err := a.UpdateService(t.Context(), created.ID[:12], version, spec, opts)
			return err
		}
		if err := update(svc.Version.Index, "busybox:1", ServiceOptions{Rollback: "previous"}); !errdefs.IsFailedPrecondition(err) ||
			err.Error() != "rpc error: code = FailedPrecondition desc = service "+created.ID+" does not have a previous spec" {
			t.Errorf("rollback to nothing: %v", err)
		}
		if err := update(svc.Version.Index, "busybox:2", ServiceOptions{RegistryAuth: "second"}); err != nil {
			t.Fatal(err)
		}
		if err := update(svc.Version.Index, "busybox:3", ServiceOptions{}); err == nil || err.Error() != "rpc error: code = Unknown desc = update out of sequence" {
			t.Errorf("a stale update: %v", err)
		}
		now := s.store.View().Service(created.ID)
		if now.Previous == nil || now.Previous.TaskTemplate.ContainerSpec.Image != "busybox:1" || now.PrevVersion != svc.Version.Index || now.RegistryAuth != "second" {
			t.Errorf("after the update: %+v", now)
		}
		if err := update(now.Version, "busybox:2", ServiceOptions{AuthFrom: "previous-spec"}); err != nil {
			t.Fatal(err)
		}
		again := s.store.View().Service(created.ID)
		if again.SpecVersion != now.SpecVersion || again.PrevVersion != now.PrevVersion || again.RegistryAuth != "first" {
			t.Errorf("the same spec again: %+v", again)
		}
		if err := update(again.Version, "", ServiceOptions{Rollback: "previous"}); err != nil {
			t.Fatal(err)
		}
		back := s.store.View().Service(created.ID)
		if back.Spec.TaskTemplate.ContainerSpec.Image != "busybox:1" || back.Update == nil || back.Update.State != swarm.UpdateStateRollbackStarted {
			t.Errorf("after the rollback: %+v", back)
		}
		spec := webSpec("other")
		if _, err := a.UpdateService(t.Context(), created.ID, back.Version, spec, ServiceOptions{}); !errdefs.IsNotImplemented(err) {
			t.Errorf("a new name: %v", err)
		}
		if err := a.RemoveService(t.Context(), name); err != nil {
			t.Error(err)
		}
		if err := a.RemoveService(t.Context(), name); !errdefs.IsNotFound(err) || err.Error() != "service "+name+" not found" {
			t.Errorf("a second removal: %v", err)
		}
	}
}

// TestLoopsDoNotMakeUsersStale has a loop write a service after the user read it.
func TestLoopsDoNotMakeUsersStale(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	created, err := a.CreateService(t.Context(), webSpec("web"), ServiceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	read := s.store.View().Service(created.ID)
	loop := *read
	loop.Ports = []swarm.PortConfig{{TargetPort: 80}}
	s.propose(t, store.UpdateService(&loop))
	spec := webSpec("web")
	spec.TaskTemplate.ContainerSpec.Image = "busybox:2"
	if _, err := a.UpdateService(t.Context(), "web", read.Version, spec, ServiceOptions{}); err != nil {
		t.Errorf("a loop's write came between: %v", err)
	}
	if got := s.store.View().Service(created.ID); len(got.Ports) != 1 {
		t.Error("the loop's write is lost")
	}
	if _, err := a.UpdateService(t.Context(), "web", read.Version, webSpec("web"), ServiceOptions{}); err == nil {
		t.Error("another user's write came between, and nobody noticed")
	}
	if _, err := a.UpdateService(t.Context(), "web", 1<<40, webSpec("web"), ServiceOptions{}); err == nil {
		t.Error("a version of the future is taken")
	}
}

func TestWithoutLeader(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	if _, err := a.CreateService(t.Context(), webSpec("web"), ServiceOptions{}); err != nil {
		t.Fatal(err)
	}
	s.leader = ""
	if _, err := a.CreateService(t.Context(), webSpec("web2"), ServiceOptions{}); !errdefs.IsUnavailable(err) {
		t.Errorf("a write: %v", err)
	}
	if list, err := a.Services(t.Context(), nil, true); err != nil || len(list) != 1 {
		t.Errorf("a read: %d, %v", len(list), err)
	}
	if _, err := a.Handle(t.Context(), "services", []byte("{}")); !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("a forwarded call: %v", err)
	}
	s.leader, s.lose = "m1", raftlog.ErrLost
	if _, err := s.apis["m1"].CreateService(t.Context(), webSpec("web2"), ServiceOptions{}); !errdefs.IsUnavailable(err) {
		t.Errorf("a write whose outcome is not known: %v", err)
	}
}

func TestTasksAreShown(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m1"]
	created, err := a.CreateService(t.Context(), webSpec("web"), ServiceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svc := s.store.View().Service(created.ID)
	ingress := s.store.View().NetworkByName("ingress")
	alloc := *ingress
	alloc.Subnet, alloc.Gateway, alloc.VNI = netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.1"), 4096
	for i, state := range []cluster.State{cluster.StateRunning, cluster.StatePreparing} {
		s.propose(t, store.CreateTask(&cluster.Task{
			ID: cluster.NewID(), ServiceID: svc.ID, SpecVersion: svc.SpecVersion, Slot: i + 1, NodeID: "m1", Desired: cluster.StateRunning,
			Networks: []cluster.Attachment{{NetworkID: ingress.ID, Addr: netip.MustParseAddr("10.0.0.5")}},
			Status:   cluster.Status{State: state, Message: "started", ContainerID: "abc", PID: 7},
		}))
	}
	s.propose(t, store.UpdateNetwork(&alloc),
		store.CreateTask(&cluster.Task{ID: "att", NodeID: "m1", Attach: &cluster.Attach{NetworkID: ingress.ID, ContainerID: "c"}}))
	for what, c := range map[string]struct {
		filters Filters
		want    int
		err     string
	}{
		"all":              {nil, 2, ""},
		"of the service":   {Filters{"service": {"web": true}}, 2, ""},
		"of none":          {Filters{"service": {"nosuch": true}}, 0, "service nosuch not found"},
		"on the node":      {Filters{"node": {"manager1": true}}, 2, ""},
		"by name":          {Filters{"name": {"web.2": true}}, 1, ""},
		"to run":           {Filters{"desired-state": {"running": true}}, 2, ""},
		"to be shut down":  {Filters{"desired-state": {"shutdown": true}}, 0, ""},
		"of a bogus state": {Filters{"desired-state": {"bogus": true}}, 0, "invalid filter 'desired-state=bogus'"},
		"bogus":            {Filters{"bogus": {"1": true}}, 0, "Invalid filter 'bogus'"},
		"up to date":       {Filters{"up-to-date": {"true": true}}, 2, ""},
	} {
		got, err := a.Tasks(t.Context(), c.filters)
		if len(got) != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: %d tasks, %v; want %d, %q", what, len(got), err, c.want, c.err)
		}
	}
	list, err := a.Tasks(t.Context(), Filters{"name": {"web.1": true}})
	if err != nil || len(list) != 1 {
		t.Fatal(len(list), err)
	}
	got := list[0]
	if got.Status.State != "running" || got.Status.ContainerStatus.PID != 7 || got.Spec.ContainerSpec.Image != "busybox:1" ||
		got.NetworksAttachments[0].Addresses[0].String() != "10.0.0.5/24" {
		t.Errorf("%+v", got)
	}
	services, err := a.Services(t.Context(), nil, true)
	if err != nil || len(services) != 1 {
		t.Fatal(err)
	}
	if d := cmp.Diff(&swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 1}, services[0].ServiceStatus); d != "" {
		t.Error(d)
	}
}

func FuzzHandle(f *testing.F) {
	s := newSwarm(f)
	for name := range s.apis["m1"].methods {
		f.Add(name, []byte(`{"Spec":{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}}`))
	}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		s.apis["m1"].Handle(t.Context(), name, body) // no panic
	})
}
