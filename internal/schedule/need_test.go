package schedule

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func TestReservationsAreKeptAndFreedOnDeath(t *testing.T) {
	g := newStage(t)
	g.node("a") // 4 CPUs
	g.service("web", reserve(1e9, 0))
	ids := g.pending("web", 6)
	g.schedule()
	g.want("web", map[string]int{"a": 4})
	if got := g.errOf(ids[5]); got != "no suitable node (insufficient resources on 1 node)" {
		t.Errorf("%q", got)
	}
	c := *g.s.View().Task(ids[0]) // told to stop, but still there
	c.Desired = cluster.StateShutdown
	g.apply(store.UpdateTask(&c))
	if g.schedule(); g.placed("web")["a"] != 3 {
		t.Error("its resources were given away while it stops")
	}
	g.end(ids[0], cluster.StateShutdown)
	g.schedule()
	g.want("web", map[string]int{"a": 4})
}

func TestGenericResources(t *testing.T) {
	g := newStage(t)
	gpu := func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 2}},
		}}}
	}
	g.node("none")
	g.node("named", func(n *cluster.Node) {
		for _, v := range []string{"u1", "u2", "u3"} {
			n.Description.Resources.GenericResources = append(n.Description.Resources.GenericResources,
				swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: v}})
		}
	})
	g.node("discrete", func(n *cluster.Node) {
		n.Description.Resources.GenericResources = []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 4}},
		}
	})
	g.service("train", gpu)
	g.pending("train", 5)
	g.schedule()
	g.want("train", map[string]int{"named": 1, "discrete": 2})
}

func TestPlatforms(t *testing.T) {
	g := newStage(t)
	g.node("amd")
	g.node("arm", func(n *cluster.Node) { n.Description.Platform.Architecture = "aarch64" })
	g.service("web", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "arm64", OS: "linux"}}}))
	g.service("win", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "amd64", OS: "windows"}}}))
	g.service("amd", placement(swarm.Placement{Platforms: []swarm.Platform{{Architecture: "amd64", OS: "linux"}}}))
	g.pending("web", 2)
	g.pending("amd", 2)
	id := g.pending("win", 1)[0]
	g.schedule()
	g.want("web", map[string]int{"arm": 2})
	g.want("amd", map[string]int{"amd": 2})
	if got := g.errOf(id); got != "no suitable node (unsupported platform on 2 nodes)" {
		t.Errorf("%q", got)
	}
}

func TestOneHostPortANode(t *testing.T) {
	port := func(proto string) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{
				{TargetPort: 80, PublishedPort: 80, Protocol: swarm.PortConfig{}.Protocol, PublishMode: swarm.PortConfigPublishModeHost},
			}}
			if proto == "udp" {
				s.EndpointSpec.Ports[0].Protocol = "udp"
			}
		}
	}
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.service("web", port("tcp"))
	g.service("dns", port("udp"))
	g.service("also", port("tcp"))
	ids := g.pending("web", 3)
	g.schedule()
	g.want("web", map[string]int{"a": 1, "b": 1})
	if got := g.errOf(ids[2]); got != "no suitable node (host-mode port already in use on 2 nodes)" {
		t.Errorf("%q", got)
	}
	g.pending("dns", 2)
	g.pending("also", 1)
	g.schedule()
	g.want("dns", map[string]int{"a": 1, "b": 1}) // UDP is another port
	g.want("also", map[string]int{})
}

func TestMaxReplicasANode(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b")
	g.service("web", placement(swarm.Placement{MaxReplicas: 2}))
	ids := g.pending("web", 5)
	g.schedule()
	g.want("web", map[string]int{"a": 2, "b": 2})
	if got := g.errOf(ids[4]); got != "no suitable node (max replicas per node limit exceed)" {
		t.Errorf("%q", got)
	}
}

func TestMissingPlugins(t *testing.T) {
	g := newStage(t)
	g.node("a")
	g.node("b", func(n *cluster.Node) {
		n.Description.Engine.Plugins = []swarm.PluginDescription{{Type: "Log", Name: "json-file"}}
	})
	driver := func(name string) func(*swarm.ServiceSpec) {
		return func(s *swarm.ServiceSpec) { s.TaskTemplate.LogDriver = &swarm.Driver{Name: name} }
	}
	g.service("lb", driver("bogus"), placement(swarm.Placement{Constraints: []string{"node.hostname==b"}}))
	g.service("ok", driver("json-file"))
	id := g.pending("lb", 1)[0]
	g.pending("ok", 2)
	g.schedule()
	g.want("ok", map[string]int{"a": 1, "b": 1})
	if got := g.errOf(id); got != "no suitable node (missing plugin on 1 node; scheduling constraints not satisfied on 1 node)" {
		t.Errorf("%q", got)
	}
}

func TestConstraintsOfOneNode(t *testing.T) {
	g := newStage(t)
	g.node("a", func(n *cluster.Node) { n.Status.Addr = "10.0.0.1" })
	g.node("b", func(n *cluster.Node) { n.Status.Addr = "10.0.1.2" })
	for c, want := range map[string]string{
		"node.id==a": "a", "node.hostname!=a": "b", "node.ip==10.0.1.0/24": "b", "node.ip!=10.0.1.2": "a",
		"node.hostname==B": "b",
	} {
		g.service(c, placement(swarm.Placement{Constraints: []string{c}}))
		g.pending(c, 3)
		g.schedule()
		g.want(c, map[string]int{want: 3})
	}
}
