package store

import (
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

func TestWhatNeedsNoAllocationIsAllocatedAtOnce(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a:1")))
	get := func() *cluster.Service { return l.View().Service("s1") }
	want := func(what string, allocated bool) {
		t.Helper()
		if s := get(); (s.Allocated == s.SpecVersion) != allocated {
			t.Errorf("%s: allocated %d of %d", what, s.Allocated, s.SpecVersion)
		}
	}
	update := func(change func(*swarm.ServiceSpec)) {
		t.Helper()
		n := *get()
		spec := *n.Spec
		change(&spec)
		n.Spec = &spec
		l.do(UpdateService(&n))
	}
	ports := func(s *swarm.ServiceSpec) {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	}
	image := func(name string) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: name} }
	}
	want("a new one that needs nothing", true)
	update(image("a:2"))
	want("an update that needs nothing", true)
	update(ports)
	want("an update that publishes a port", false)
	update(image("a:3"))
	want("an update before the port is given", false)

	n := *get()
	n.Allocated, n.Ports = n.SpecVersion, []swarm.PortConfig{{TargetPort: 80, PublishedPort: 30000}}
	n.VIPs = []cluster.VIP{{NetworkID: "in", Addr: netip.MustParseAddr("10.0.0.2")}}
	l.do(UpdateService(&n))
	update(image("a:4"))
	want("an update that needs what the service has", true)
	update(func(s *swarm.ServiceSpec) { s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "net"}} })
	want("an update that joins a network", false)
	update(func(s *swarm.ServiceSpec) { s.TaskTemplate.Networks, s.EndpointSpec = nil, nil })
	want("an update that gives back what the service has", false)

	n = *get()
	n.Allocated, n.Ports, n.VIPs = n.SpecVersion, nil, nil
	l.do(UpdateService(&n))
	n = *get()
	n.AllocErr = "none is left"
	n.Spec = serviceSpec("web", "a:5")
	l.do(UpdateService(&n))
	want("an update that needs nothing any more", true)
	if e := get().AllocErr; e != "" {
		t.Errorf("and yet it complains: %s", e)
	}
}
