package control

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

func TestNodes(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	s.propose(t, store.CreateNode(&cluster.Node{ID: "w1", Spec: &swarm.NodeSpec{Role: "worker", Availability: "active"}, Role: "worker",
		Description: &swarm.NodeDescription{Hostname: "worker1"}, Status: cluster.NodeStatus{State: swarm.NodeStateReady}}))
	list, err := a.Nodes(t.Context(), Filters{"role": {"manager": true}})
	if err != nil || len(list) != 1 || !list[0].ManagerStatus.Leader || list[0].ManagerStatus.Reachability != "reachable" {
		t.Errorf("managers: %+v, %v", list, err)
	}
	n, err := a.Node(t.Context(), "worker1")
	if err != nil {
		t.Fatal(err)
	}
	update := func(ref string, spec swarm.NodeSpec) error {
		n, err := a.Node(t.Context(), ref)
		if err != nil {
			return err
		}
		return a.UpdateNode(t.Context(), ref, n.Version.Index, spec)
	}
	check := func(what string, err error, want string) {
		t.Helper()
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	check("drain", update("worker1", swarm.NodeSpec{Availability: "drain"}), "")
	check("stale", a.UpdateNode(t.Context(), "worker1", n.Version.Index, swarm.NodeSpec{}), "rpc error: code = Unknown desc = update out of sequence")
	check("availability", update("worker1", swarm.NodeSpec{Availability: "bogus"}), `invalid Availability: "bogus"`)
	check("role", update("worker1", swarm.NodeSpec{Role: "bogus"}), `invalid Role: "bogus"`)
	check("the last manager", update("manager1", swarm.NodeSpec{Role: "worker"}), "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm")
	check("promote", update("worker1", swarm.NodeSpec{Role: "manager"}), "")
	check("one that has not joined yet", update("worker1", swarm.NodeSpec{Role: "worker"}), "rpc error: code = NotFound desc = can't find manager in raft memberlist")
	s.members = append(s.members, raftlog.Member{ID: "w1"})
	check("the quorum", update("manager1", swarm.NodeSpec{Role: "worker"}), "rpc error: code = FailedPrecondition desc = can't remove member from the raft: this would result in a loss of quorum")
	check("rm of a manager", a.RemoveNode(t.Context(), "w1", true), "rpc error: code = FailedPrecondition desc = node w1 is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal")
	check("demote", update("worker1", swarm.NodeSpec{Role: "worker"}), "")
	s.members = s.members[:1]
	check("rm of one that is up", a.RemoveNode(t.Context(), "worker1", false), "rpc error: code = FailedPrecondition desc = node w1 is not down and can't be removed")
	check("rm --force", a.RemoveNode(t.Context(), "worker1", true), "")
	check("gone", a.RemoveNode(t.Context(), "worker1", true), "node worker1 not found")
	if s.store.View().Cluster().RemovedNodes["w1"].Before(time.Now().Add(24 * time.Hour)) {
		t.Error("its certificate is not refused")
	}
}

func TestSwarmUpdate(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	before, err := a.Swarm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultSpec(), before.Spec, cmpopts.EquateEmpty()); d != "" || before.SubnetSize != 24 || before.DataPathPort != 4789 || before.TLSInfo.CertIssuerSubject == nil {
		t.Errorf("a new swarm: %s", d)
	}
	update := func(version uint64, change func(*swarm.Spec), flags UpdateFlags) error {
		spec := before.Spec
		change(&spec)
		return a.UpdateSwarm(t.Context(), version, spec, flags)
	}
	same := func(*swarm.Spec) {}
	v := before.Version.Index
	for want, change := range map[string]func(*swarm.Spec){
		"rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s":          func(s *swarm.Spec) { s.CAConfig.NodeCertExpiry = time.Minute },
		"rpc error: code = InvalidArgument desc = heartbeat time period cannot be a negative duration": func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = -1 },
		"autolock (--autolock) is not built yet":                                                       func(s *swarm.Spec) { s.EncryptionConfig.AutoLockManagers = true },
		"rpc error: code = InvalidArgument desc = modification of cluster name is not allowed":         func(s *swarm.Spec) { s.Name = "mine" },
	} {
		if err := update(v, change, UpdateFlags{}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := update(v, func(s *swarm.Spec) { s.Orchestration.TaskHistoryRetentionLimit = ptr(int64(3)) }, UpdateFlags{RotateWorkerToken: true}); err != nil {
		t.Fatal(err)
	}
	if err := update(v, same, UpdateFlags{}); err == nil || err.Error() != "rpc error: code = Unknown desc = update out of sequence" {
		t.Errorf("a stale update: %v", err)
	}
	after, err := a.Swarm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if *after.Spec.Orchestration.TaskHistoryRetentionLimit != 3 || after.JoinTokens.Worker == before.JoinTokens.Worker || after.JoinTokens.Manager != before.JoinTokens.Manager {
		t.Errorf("after: %+v", after)
	}
}

func TestNetworks(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	id, err := a.CreateNetwork(t.Context(), network.CreateRequest{Name: "att", Driver: "overlay", Attachable: true,
		IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.77.0.0/24")}}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := a.Networks(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%d networks, %v; want ingress and att", len(list), err)
	}
	ingress := s.store.View().NetworkByName("ingress").ID
	for want, r := range map[string]network.CreateRequest{
		"network with name att already exists":                                                        {Name: "att"},
		"rpc error: code = AlreadyExists desc = ingress network (" + ingress + ") is already present": {Name: "ing2", Ingress: true},
		"rpc error: code = InvalidArgument desc = name must be valid as a DNS name component":         {Name: "a b"},
		"an encrypted network (--opt encrypted) is not built yet":                                     {Name: "enc", Options: map[string]string{"encrypted": ""}},
		"the driver macvlan for a swarm's network (--driver) is not built yet":                        {Name: "mac", Driver: "macvlan"},
		"the subnet 10.0.0.0/31 must have a prefix of 8 to 29 bits":                                   {Name: "tiny", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.0.0/31")}}}},
	} {
		if _, err := a.CreateNetwork(t.Context(), r); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", r.Name, err, want)
		}
	}
	spec := webSpec("web")
	spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "att"}}
	svc, err := a.CreateService(t.Context(), spec, ServiceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.store.View().Service(svc.ID).Spec.TaskTemplate.Networks[0].Target; got != id {
		t.Errorf("the service refers to %q, want %q", got, id)
	}
	if err := a.RemoveNetwork(t.Context(), "att"); err == nil || err.Error() != "rpc error: code = FailedPrecondition desc = network "+id+" is in use by service "+svc.ID {
		t.Errorf("in use: %v", err)
	}
	if err := a.RemoveService(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	s.propose(t, store.CreateTask(&cluster.Task{ID: "t", Desired: cluster.StateShutdown, Attach: &cluster.Attach{NetworkID: id},
		Status: cluster.Status{State: cluster.StateRunning}}))
	if err := a.RemoveNetwork(t.Context(), "att"); err != nil {
		t.Fatal(err)
	}
	if n := s.store.View().Network(id); n == nil || !n.PendingDelete {
		t.Errorf("a network with an ending task: %+v", n)
	}
	if _, err := a.Network(t.Context(), "att"); !errdefs.IsNotFound(err) {
		t.Errorf("a removed network: %v", err)
	}
	if _, err := a.CreateNetwork(t.Context(), network.CreateRequest{Name: "att"}); err != nil {
		t.Errorf("its name is not free: %v", err)
	}
	if err := a.RemoveNetwork(t.Context(), "host"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the host's: %v", err)
	}
}

func TestSecretsAndConfigs(t *testing.T) {
	s := newSwarm(t)
	a := s.apis["m2"]
	id, err := a.CreateSecret(t.Context(), swarm.SecretSpec{Annotations: swarm.Annotations{Name: "my_secret"}, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	cid, err := a.CreateConfig(t.Context(), swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "my_config"}, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	const inv = "rpc error: code = InvalidArgument desc = "
	for want, spec := range map[string]swarm.SecretSpec{
		"rpc error: code = AlreadyExists desc = secret my_secret already exists":                                             {Annotations: swarm.Annotations{Name: "my_secret"}, Data: []byte("x")},
		inv + "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]": {Annotations: swarm.Annotations{Name: "bad/name"}, Data: []byte("x")},
		inv + "secret data must be larger than 0 and less than 512000 bytes":                                                 {Annotations: swarm.Annotations{Name: "big"}, Data: make([]byte, 512000)},
	} {
		if _, err := a.CreateSecret(t.Context(), spec); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := a.CreateConfig(t.Context(), swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "big"}, Data: make([]byte, 1024000)}); err == nil ||
		err.Error() != inv+"config data must be larger than 0 and less than 1024000 bytes" {
		t.Error(err)
	}
	got, err := a.Secret(t.Context(), "my_secret")
	if err != nil || got.Spec.Data != nil {
		t.Errorf("a secret is shown: %q, %v", got.Spec.Data, err)
	}
	cfg, err := a.Config(t.Context(), cid[:10])
	if err != nil || string(cfg.Spec.Data) != "x" {
		t.Errorf("a config: %q, %v", cfg.Spec.Data, err)
	}
	if err := a.UpdateSecret(t.Context(), id, got.Version.Index, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "my_secret", Labels: map[string]string{"a": "b"}}}); err != nil {
		t.Error(err)
	}
	if string(s.store.View().Secret(id).Spec.Data) != "x" {
		t.Error("an update of the labels lost the secret")
	}
	if err := a.UpdateConfig(t.Context(), cid, cfg.Version.Index, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "my_config"}, Data: []byte("y")}); err == nil || err.Error() != inv+"only updates to Labels are allowed" {
		t.Error(err)
	}
	spec := webSpec("u_secret")
	spec.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: id, SecretName: "my_secret", File: &swarm.SecretReferenceFileTarget{Name: "f"}}}
	spec.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: cid, ConfigName: "my_config", File: &swarm.ConfigReferenceFileTarget{Name: "f"}}}
	if _, err := a.CreateService(t.Context(), spec, ServiceOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.RemoveSecret(t.Context(), "my_secret"); err == nil || err.Error() != inv+"secret 'my_secret' is in use by the following service: u_secret" {
		t.Error(err)
	}
	if err := a.RemoveConfig(t.Context(), "my_config"); err == nil || err.Error() != inv+"config 'my_config' is in use by the following service: u_secret" {
		t.Error(err)
	}
	if err := errors.Join(a.RemoveService(t.Context(), "u_secret"), a.RemoveSecret(t.Context(), id), a.RemoveConfig(t.Context(), cid)); err != nil {
		t.Error(err)
	}
	if err := a.RemoveSecret(t.Context(), "nosuch"); err == nil || err.Error() != "secret nosuch not found" {
		t.Error(err)
	}
}

func TestNamelessServicesGetNames(t *testing.T) {
	s := newSwarm(t)
	for range 5 {
		created, err := s.apis["m1"].CreateService(t.Context(), webSpec(""), ServiceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if name := s.store.View().Service(created.ID).Spec.Name; checkName(name) != nil {
			t.Errorf("the name %q", name)
		}
	}
}
