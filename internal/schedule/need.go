package schedule

import (
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// need is what the tasks of one version of a service ask of a node.
type need struct {
	constraints []cluster.Constraint // those that a class answers
	ofOneNode   []cluster.Constraint // those that each node answers for itself
	unreadable  bool                 // constraints that nothing satisfies
	platforms   []swarm.Platform
	plugins     []swarm.PluginDescription
	cpu, mem    int64
	generic     map[string]int64
	ports       []hostPort
	maxReplicas int
	spread      []string // descriptors of the spread preferences
	refs        int
}

type hostPort struct {
	proto network.IPProtocol
	port  uint32
}

func needOf(spec *swarm.ServiceSpec) *need {
	n := &need{}
	if spec == nil {
		return n
	}
	n.place(spec)
	r := cluster.ReservationsOf(spec)
	n.cpu, n.mem, n.generic = r.NanoCPUs, r.MemoryBytes, countGeneric(r.GenericResources)
	if spec.EndpointSpec != nil {
		for _, p := range spec.EndpointSpec.Ports {
			if cluster.HostPort(p) && p.PublishedPort != 0 {
				n.ports = append(n.ports, portOf(p))
			}
		}
	}
	n.plugins = pluginsOf(&spec.TaskTemplate)
	return n
}

func (n *need) place(spec *swarm.ServiceSpec) {
	cs, err := cluster.ParseConstraints(cluster.ConstraintsOf(spec))
	n.unreadable = err != nil
	for _, c := range cs {
		if c.OfOneNode() {
			n.ofOneNode = append(n.ofOneNode, c)
		} else {
			n.constraints = append(n.constraints, c)
		}
	}
	p := spec.TaskTemplate.Placement
	if p == nil {
		return
	}
	n.platforms, n.maxReplicas = p.Platforms, int(p.MaxReplicas)
	for _, pref := range p.Preferences {
		if pref.Spread != nil {
			n.spread = append(n.spread, pref.Spread.SpreadDescriptor)
		}
	}
}

func portOf(p swarm.PortConfig) hostPort {
	if p.Protocol == "" {
		return hostPort{network.TCP, p.PublishedPort}
	}
	return hostPort{p.Protocol, p.PublishedPort}
}

// pluginsOf lists the drivers a node must have besides those every node has.
func pluginsOf(t *swarm.TaskSpec) []swarm.PluginDescription {
	var out []swarm.PluginDescription
	if t.ContainerSpec != nil {
		for _, m := range t.ContainerSpec.Mounts {
			if m.Type != mount.TypeVolume || m.VolumeOptions == nil || m.VolumeOptions.DriverConfig == nil {
				continue
			}
			if d := m.VolumeOptions.DriverConfig.Name; d != "" && d != "local" {
				out = append(out, swarm.PluginDescription{Type: "Volume", Name: d})
			}
		}
	}
	if t.LogDriver != nil && t.LogDriver.Name != "" && t.LogDriver.Name != "none" {
		out = append(out, swarm.PluginDescription{Type: "Log", Name: t.LogDriver.Name})
	}
	return out
}

func countGeneric(rs []swarm.GenericResource) map[string]int64 {
	var out map[string]int64
	for _, r := range rs {
		if out == nil {
			out = map[string]int64{}
		}
		if r.DiscreteResourceSpec != nil {
			out[r.DiscreteResourceSpec.Kind] += r.DiscreteResourceSpec.Value
		}
		if r.NamedResourceSpec != nil {
			out[r.NamedResourceSpec.Kind]++
		}
	}
	return out
}

// obstacle is why a node cannot take a task; in the order in which the reasons
// are looked for.
type obstacle int

const (
	none obstacle = iota
	unavailable
	resources
	plugin
	constraint
	platform
	portTaken
	replicas
	obstacles // how many there are
)

// classObstacle says what stands against every node of a class.
func (n *need) classObstacle(c *class) obstacle {
	node := c.like
	switch {
	case !node.Ready():
		return unavailable
	case !hasPlugins(node, n.plugins):
		return plugin
	case n.unreadable || !cluster.MatchAll(n.constraints, node):
		return constraint
	case !onPlatform(node, n.platforms):
		return platform
	}
	return none
}

// hostObstacle says what stands against one node of a class that would do.
func (n *need) hostObstacle(h *host, ofService int) obstacle {
	switch {
	case !h.hasRoom(n):
		return resources
	case len(n.ofOneNode) > 0 && !cluster.MatchAll(n.ofOneNode, h.node):
		return constraint
	case len(n.ports) > 0 && h.portsTaken(n.ports):
		return portTaken
	case n.maxReplicas > 0 && ofService >= n.maxReplicas:
		return replicas
	}
	return none
}

// obstacleOn says what stands against a node, the first reason in Docker's order.
func (n *need) obstacleOn(h *host, ofService int) obstacle {
	ofClass, ofHost := n.classObstacle(h.class), n.hostObstacle(h, ofService)
	if ofClass == none || ofHost != none && ofHost < ofClass {
		return ofHost
	}
	return ofClass
}

func hasPlugins(node *cluster.Node, plugins []swarm.PluginDescription) bool {
	for _, want := range plugins {
		found, listed := false, false
		if node.Description != nil {
			for _, has := range node.Description.Engine.Plugins {
				listed = listed || has.Type == want.Type
				found = found || has.Type == want.Type && (has.Name == want.Name || has.Name == want.Name+":latest")
			}
		}
		if !found && (listed || want.Type != "Log") { // a node that lists no log drivers says nothing of them
			return false
		}
	}
	return true
}

func onPlatform(node *cluster.Node, platforms []swarm.Platform) bool {
	if len(platforms) == 0 {
		return true
	}
	if node.Description == nil {
		return false
	}
	has := node.Description.Platform
	for _, p := range platforms {
		if (p.OS == "" || strings.EqualFold(p.OS, has.OS)) &&
			(p.Architecture == "" || arch(p.Architecture) == arch(has.Architecture)) {
			return true
		}
	}
	return false
}

func arch(a string) string {
	switch a = strings.ToLower(a); a {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}
