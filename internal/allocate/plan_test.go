package allocate

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// stage is a store with an allocator on it.
type stage struct {
	t     testing.TB
	s     *store.Store
	l     *ledger
	index uint64
}

func newStage(t testing.TB) *stage {
	g := &stage{t: t, s: store.New(), l: newLedger()}
	g.apply(store.PutCluster(&cluster.Cluster{ID: "c", Spec: &swarm.Spec{}}))
	return g
}

func (g *stage) apply(cs ...store.Change) {
	g.t.Helper()
	g.index++
	at := time.Unix(int64(g.index), 0)
	if err := g.s.Apply(g.index, store.Entry{At: at, Changes: cs}); err != nil {
		g.t.Fatal(err)
	}
}

// settle plans and applies until nothing is left to do.
func (g *stage) settle() {
	g.t.Helper()
	for range 10 {
		todo, ready := g.l.Plan(g.s.View())
		g.s.ObserveAll(ready)
		if len(todo)+len(ready) == 0 {
			if again, ready := newLedger().Plan(g.s.View()); len(again)+len(ready) != 0 {
				g.t.Fatalf("a new leader's plan yields %d groups", len(again)+len(ready))
			}
			g.unique()
			return
		}
		for _, group := range todo {
			g.apply(group...)
		}
	}
	g.t.Fatal("it never settles")
}

// unique checks that nobody holds an address that another holds.
func (g *stage) unique() {
	g.t.Helper()
	v := g.s.View()
	by := map[addr]string{}
	take := func(network string, a netip.Addr, who string) {
		if other := by[addr{network, a}]; a.IsValid() && other != "" {
			g.t.Fatalf("%s and %s both hold %s", other, who, a)
		}
		by[addr{network, a}] = who
	}
	for _, n := range v.Networks() {
		take(n.ID, n.Gateway, "the gateway")
	}
	for _, s := range v.Services() {
		for _, vip := range s.VIPs {
			take(vip.NetworkID, vip.Addr, s.ID)
		}
	}
	for _, n := range v.Nodes() {
		for id, a := range n.Addrs {
			take(id, a, n.ID)
		}
	}
	for _, t := range v.Tasks() {
		if !t.Status.State.Terminal() {
			for _, at := range t.Networks {
				take(at.NetworkID, at.Addr, t.ID)
			}
		}
	}
}

func (g *stage) network(id string, change ...func(*swarm.NetworkSpec)) {
	g.t.Helper()
	spec := &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: id}}
	for _, c := range change {
		c(spec)
	}
	g.apply(store.CreateNetwork(&cluster.Network{ID: id, Spec: spec}))
}

func ingress(s *swarm.NetworkSpec) { s.Ingress = true }

func subnet(p string) func(*swarm.NetworkSpec) {
	return func(s *swarm.NetworkSpec) {
		s.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: netip.MustParsePrefix(p)}}}
	}
}

func (g *stage) service(id string, change ...func(*swarm.ServiceSpec)) {
	g.t.Helper()
	spec := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: id}}
	for _, c := range change {
		c(spec)
	}
	if old := g.s.View().Service(id); old != nil {
		c := *old
		c.Spec = spec
		g.apply(store.UpdateService(&c))
		return
	}
	g.apply(store.CreateService(&cluster.Service{ID: id, Spec: spec}))
}

func publish(ports ...swarm.PortConfig) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		if s.EndpointSpec == nil {
			s.EndpointSpec = &swarm.EndpointSpec{}
		}
		s.EndpointSpec.Ports = ports
	}
}

func in(networks ...string) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) {
		for _, n := range networks {
			s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n, Aliases: []string{"alias"}})
		}
	}
}

func dnsrr(s *swarm.ServiceSpec) {
	s.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeDNSRR}
}

func (g *stage) task(id, service string) {
	g.t.Helper()
	g.apply(store.CreateTask(&cluster.Task{
		ID: id, ServiceID: service, SpecVersion: g.s.View().Service(service).SpecVersion, Slot: int(g.index),
		Desired: cluster.StateRunning, Status: cluster.Status{State: cluster.StateNew},
	}))
}

func (g *stage) end(id string) {
	g.t.Helper()
	g.apply(store.SetStatus(id, cluster.Status{State: cluster.StateFailed}))
}

func (g *stage) addrs(id string) (out []string) {
	for _, at := range g.s.View().Task(id).Networks {
		if at.Addr.IsValid() {
			out = append(out, at.Addr.String())
		} else {
			out = append(out, at.NetworkID)
		}
	}
	return out
}

func (g *stage) node(id string) {
	g.t.Helper()
	g.apply(store.CreateNode(&cluster.Node{ID: id, Spec: &swarm.NodeSpec{}, Status: cluster.NodeStatus{State: swarm.NodeStateReady}}))
}

func TestNetworksGetTheirSubnetsInOrder(t *testing.T) {
	g := newStage(t)
	g.network("a")
	g.network("b", subnet("10.0.2.0/24"))
	g.network("c")
	g.network("z", ingress)
	g.network("local", func(s *swarm.NetworkSpec) { s.DriverConfiguration = &swarm.Driver{Name: "host"} })
	g.settle()
	type row struct {
		Subnet, Gateway string
		VNI             uint32
	}
	got := map[string]row{}
	for _, n := range g.s.View().Networks() {
		if n.Subnet.IsValid() {
			got[n.ID] = row{n.Subnet.String(), n.Gateway.String(), n.VNI}
		}
	}
	want := map[string]row{
		"z": {"10.0.0.0/24", "10.0.0.1", 4096}, // the ingress network first
		"a": {"10.0.1.0/24", "10.0.1.1", 4097},
		"b": {"10.0.2.0/24", "10.0.2.1", 4098},
		"c": {"10.0.3.0/24", "10.0.3.1", 4099},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("want - got +:\n%s", d)
	}
}

func TestNetworksThatCannotBe(t *testing.T) {
	g := newStage(t)
	c := *g.s.View().Cluster()
	c.DefaultAddrPool, c.SubnetSize = []netip.Prefix{netip.MustParsePrefix("10.5.0.0/25")}, 26
	g.apply(store.PutCluster(&c))
	g.network("a")
	g.network("b")
	g.settle()
	g.network("full")
	g.network("overlaps", subnet("10.5.0.0/16"))
	g.network("outside", func(s *swarm.NetworkSpec) {
		subnet("10.6.0.0/24")(s)
		s.IPAMOptions.Configs[0].Gateway = netip.MustParseAddr("10.7.0.1")
	})
	g.settle()
	got := map[string]string{}
	for _, n := range g.s.View().Networks() {
		got[n.ID] = n.AllocErr
	}
	want := map[string]string{
		"a": "", "b": "",
		"full":     "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
		"overlaps": "Pool overlaps with other one on this address space",
		"outside":  "gateway 10.7.0.1 is not in subnet 10.6.0.0/24",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("want - got +:\n%s", d)
	}
	g.apply(store.DeleteNetwork(g.s.View().Network("a")))
	g.settle()
	if n := g.s.View().Network("full"); n.Subnet.String() != "10.5.0.0/26" || n.AllocErr != "" {
		t.Errorf("after one is gone: %s %q", n.Subnet, n.AllocErr)
	}
}

func TestServicesGetAddressesAndPorts(t *testing.T) {
	g := newStage(t)
	g.network("in", ingress)
	g.network("back")
	g.service("web", in("back"), publish(swarm.PortConfig{TargetPort: 80, PublishedPort: 8080}, swarm.PortConfig{TargetPort: 81},
		swarm.PortConfig{TargetPort: 53, PublishedPort: 8080, Protocol: "udp"}))
	g.service("rr", in("back"), dnsrr)
	g.service("host", publish(swarm.PortConfig{TargetPort: 80, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeHost}))
	g.service("plain", in("host"))
	g.settle()
	v := g.s.View()
	web := v.Service("web")
	wantVIPs := []cluster.VIP{
		{NetworkID: "in", Addr: netip.MustParseAddr("10.0.0.2")}, {NetworkID: "back", Addr: netip.MustParseAddr("10.0.1.2")},
	}
	wantPorts := []swarm.PortConfig{
		{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp", PublishMode: "ingress"},
		{TargetPort: 81, PublishedPort: 30000, Protocol: "tcp", PublishMode: "ingress"},
		{TargetPort: 53, PublishedPort: 8080, Protocol: "udp", PublishMode: "ingress"},
	}
	if d := cmp.Diff(wantVIPs, web.VIPs, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("VIPs of web, want - got +:\n%s", d)
	}
	if d := cmp.Diff(wantPorts, web.Ports); d != "" {
		t.Errorf("ports of web, want - got +:\n%s", d)
	}
	if vips := v.Service("rr").VIPs; len(vips) != 1 || vips[0].Addr.IsValid() {
		t.Errorf("rr has VIPs %v; want one network without an address", vips)
	}
	for _, id := range []string{"host", "plain"} {
		if vips := v.Service(id).VIPs; len(vips) != 0 {
			t.Errorf("%s has VIPs %v", id, vips)
		}
	}
	for _, s := range v.Services() {
		if s.Allocated != s.SpecVersion || s.AllocErr != "" {
			t.Errorf("%s: allocated %d of %d, %q", s.ID, s.Allocated, s.SpecVersion, s.AllocErr)
		}
	}
	for _, s := range []string{"web", "rr", "host", "plain"} {
		g.task("t."+s, s)
	}
	g.settle()
	got := map[string][]string{}
	for _, s := range []string{"web", "rr", "host", "plain"} {
		got[s] = g.addrs("t." + s)
		if st := g.s.View().Task("t." + s).Status; st.State != cluster.StatePending {
			t.Errorf("the task of %s is %s", s, st.State)
		}
	}
	want := map[string][]string{"web": {"10.0.0.3", "10.0.1.3"}, "rr": {"10.0.1.4"}, "host": nil, "plain": {"host"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("addresses of tasks, want - got +:\n%s", d)
	}
}

func TestPublishedPortsAreStableAndNeverShared(t *testing.T) {
	g := newStage(t)
	g.network("in", ingress)
	open := swarm.PortConfig{TargetPort: 80}
	g.service("a", publish(open))
	g.service("b", publish(open, swarm.PortConfig{TargetPort: 81}))
	g.settle()
	ports := func(id string) (out []uint32) {
		for _, p := range g.s.View().Service(id).Ports {
			out = append(out, p.PublishedPort)
		}
		return out
	}
	vip := g.s.View().Service("b").VIPs[0].Addr
	g.service("b", publish(swarm.PortConfig{TargetPort: 82}, open), func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"x": "y"} })
	g.l = newLedger() // another leader
	g.settle()
	if got := ports("b"); !slices.Equal(got, []uint32{30002, 30001}) && !slices.Equal(got, []uint32{30003, 30001}) {
		t.Errorf("b publishes %v; want what it had for 80, and a new one for 82", got)
	}
	if got := g.s.View().Service("b").VIPs[0].Addr; got != vip {
		t.Errorf("its VIP went from %s to %s", vip, got)
	}
	g.service("c", publish(swarm.PortConfig{TargetPort: 80, PublishedPort: 30000}))
	g.settle()
	c := g.s.View().Service("c")
	if c.Allocated == c.SpecVersion || c.AllocErr != "port '30000' is already in use by service 'a' (a) as an ingress port" {
		t.Errorf("c: allocated %d of %d, %q", c.Allocated, c.SpecVersion, c.AllocErr)
	}
	g.apply(store.DeleteService(g.s.View().Service("a")))
	g.settle()
	if got := ports("c"); !slices.Equal(got, []uint32{30000}) {
		t.Errorf("when a is gone c publishes %v", got)
	}
}

func TestAPublishedServiceNeedsAnIngressNetwork(t *testing.T) {
	g := newStage(t)
	g.service("web", publish(swarm.PortConfig{TargetPort: 80}))
	g.settle()
	if got := g.s.View().Service("web").AllocErr; got != "service needs ingress network, but no ingress network is present" {
		t.Errorf("%q", got)
	}
	g.network("in", ingress)
	g.settle()
	if s := g.s.View().Service("web"); s.AllocErr != "" || s.Allocated != s.SpecVersion {
		t.Errorf("allocated %d of %d, %q", s.Allocated, s.SpecVersion, s.AllocErr)
	}
}

func TestReadyNodesHaveAnIngressAddress(t *testing.T) {
	g := newStage(t)
	g.network("in", ingress)
	g.node("n1")
	g.node("n2")
	g.apply(store.CreateNode(&cluster.Node{ID: "n3", Spec: &swarm.NodeSpec{}, Status: cluster.NodeStatus{State: swarm.NodeStateDown}}))
	g.settle()
	v := g.s.View()
	if a, b := v.Node("n1").Addrs["in"], v.Node("n2").Addrs["in"]; a.String() != "10.0.0.2" || b.String() != "10.0.0.3" {
		t.Errorf("nodes have %s and %s", a, b)
	}
	if a := v.Node("n3").Addrs; len(a) != 0 {
		t.Errorf("the node that is down has %v", a)
	}
	g.apply(store.DeleteNetwork(v.Network("in")))
	g.settle()
	if a := g.s.View().Node("n1").Addrs; len(a) != 0 {
		t.Errorf("without the network n1 has %v", a)
	}
}

func TestAnAddressRestsBeforeItIsUsedAgain(t *testing.T) {
	g := newStage(t)
	g.network("back", subnet("10.9.0.0/28"))
	g.service("web", in("back"))
	g.settle()
	var seen []string
	for i := range 11 { // of 14, the gateway and the VIP have one each
		id := fmt.Sprint("t", i)
		g.task(id, "web")
		if i == 5 {
			g.l = newLedger() // another leader goes on where the last one was
		}
		g.settle()
		a := g.addrs(id)[0]
		if slices.Contains(seen, a) {
			t.Fatalf("%s was used again at once; before: %v", a, seen)
		}
		seen = append(seen, a)
		g.end(id)
	}
}

func TestAFullSubnetIsExplained(t *testing.T) {
	g := newStage(t)
	g.network("back", subnet("10.9.0.0/29"))
	g.service("web", in("back"))
	g.settle()
	for i := range 5 {
		g.task(fmt.Sprint("t", i), "web")
	}
	g.settle()
	st := g.s.View().Task("t4").Status
	if st.State != cluster.StateNew || st.Err != "could not find an available IP: network back (10.9.0.0/29) has no free address left" {
		t.Errorf("%s %q", st.State, st.Err)
	}
	g.end("t0")
	g.settle()
	if st := g.s.View().Task("t4").Status; st.State != cluster.StatePending || st.Err != "" {
		t.Errorf("when one is free: %s %q", st.State, st.Err)
	}
}

func TestPlainContainersAreAttached(t *testing.T) {
	g := newStage(t)
	g.network("back")
	g.settle()
	attach := func(id, wanted string) {
		a := &cluster.Attach{NetworkID: "back", ContainerID: "c" + id}
		if wanted != "" {
			a.Wanted = netip.MustParseAddr(wanted)
		}
		g.apply(store.CreateTask(&cluster.Task{ID: id, NodeID: "n1", Desired: cluster.StateRunning, Attach: a}))
		g.settle()
	}
	attach("a", "")
	attach("b", "10.0.0.77")
	attach("c", "10.0.0.77")
	attach("d", "10.1.0.1")
	if got := []string{g.addrs("a")[0], g.addrs("b")[0]}; !slices.Equal(got, []string{"10.0.0.2", "10.0.0.77"}) {
		t.Errorf("%v", got)
	}
	for id, want := range map[string]string{
		"c": "Address already in use: 10.0.0.77 in network back (10.0.0.0/24)",
		"d": "Address already in use: 10.1.0.1 in network back (10.0.0.0/24)",
	} {
		if got := g.s.View().Task(id).Status.Err; got != want {
			t.Errorf("%s: %q", id, got)
		}
	}
}

func TestTheSameSpecsOnAFreshStateGiveTheSameResult(t *testing.T) {
	run := func() (out []string) {
		g := newStage(t)
		g.network("in", ingress)
		g.network("back")
		for i := range 5 {
			g.service(fmt.Sprint("s", i), in("back"), publish(swarm.PortConfig{TargetPort: 80}, swarm.PortConfig{TargetPort: 81}))
		}
		g.settle()
		for _, s := range g.s.View().Services() {
			out = append(out, fmt.Sprint(s.ID, s.VIPs, s.Ports))
		}
		return out
	}
	if a, b := run(), run(); !slices.Equal(a, b) {
		t.Errorf("%v\n%v", a, b)
	}
}

// TestNothingIsEverHeldTwice throws events, lost proposals and leader changes at
// the allocator; settle checks that all is unique and stable.
func TestNothingIsEverHeldTwice(t *testing.T) {
	for seed := range int64(20) {
		rng := rand.New(rand.NewSource(seed))
		g := newStage(t)
		g.network("in", ingress)
		g.network("a", subnet("10.77.0.0/27"))
		g.network("b")
		for i := range 60 {
			v := g.s.View()
			id := fmt.Sprintf("%03d", i)
			switch rng.Intn(8) {
			case 0:
				g.node("n" + id)
			case 1, 2:
				g.service("s"+fmt.Sprint(rng.Intn(6)), in([]string{"a", "b"}[rng.Intn(2)]),
					publish(swarm.PortConfig{TargetPort: uint32(80 + rng.Intn(3))}))
			case 3:
				if ss := v.Services(); len(ss) > 3 {
					g.apply(store.DeleteService(ss[rng.Intn(len(ss))]))
				}
			case 4:
				if ts := v.Tasks(); len(ts) > 0 {
					g.end(ts[rng.Intn(len(ts))].ID)
				}
			case 5:
				if ts := v.Tasks(); len(ts) > 0 {
					g.apply(store.DeleteTask(ts[rng.Intn(len(ts))]))
				}
			case 6:
				g.l.Plan(v) // a plan that nobody writes down
			case 7:
				g.l = newLedger()
			}
			if ss := g.s.View().Services(); len(ss) > 0 {
				for j := range rng.Intn(4) {
					g.task(fmt.Sprint("t", id, ".", j), ss[rng.Intn(len(ss))].ID)
				}
			}
			g.settle()
		}
	}
}
