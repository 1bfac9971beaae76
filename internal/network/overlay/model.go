package overlay

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// model is what the node was told, by network id.
type model map[string]*netItems

type netItems struct {
	net       *cluster.WantedNetwork
	peers     map[string]*cluster.Peer // these three by item id
	endpoints map[string]*cluster.Endpoint
	services  map[string]*cluster.VirtualService
}

func newNetItems() *netItems {
	return &netItems{
		peers:     map[string]*cluster.Peer{},
		endpoints: map[string]*cluster.Endpoint{},
		services:  map[string]*cluster.VirtualService{},
	}
}

// apply takes items in and returns the model and the networks they touch.
func (m model) apply(complete bool, items []cluster.Item) (model, map[string]bool) {
	touched := map[string]bool{}
	if complete {
		for id := range m {
			touched[id] = true
		}
		m = model{}
	}
	for _, it := range items {
		id, _, _ := strings.Cut(it.ID, "/")
		n := m[id]
		if n == nil {
			n = newNetItems()
		}
		switch it.Kind {
		case cluster.ItemNetwork:
			n.net = it.Network
			if n.net != nil && n.net.Driver != "" && n.net.Driver != "overlay" {
				n.net = nil // a host's own network: not ours
			}
		case cluster.ItemPeer:
			put(n.peers, it.ID, it.Peer)
		case cluster.ItemEndpoint:
			put(n.endpoints, it.ID, it.Endpoint)
		case cluster.ItemService:
			put(n.services, it.ID, it.Service)
		default:
			continue
		}
		touched[id] = true
		if n.net == nil && len(n.peers)+len(n.endpoints)+len(n.services) == 0 {
			delete(m, id)
		} else {
			m[id] = n
		}
	}
	return m, touched
}

func put[T any](m map[string]*T, id string, v *T) {
	if v == nil {
		delete(m, id)
	} else {
		m[id] = v
	}
}

// view is one network as the data path has to be; it never changes.
type view struct {
	net       cluster.WantedNetwork
	self      netip.Addr // this node's data address
	peers     []cluster.Peer
	endpoints []*cluster.Endpoint
	remote    map[netip.Addr]netip.Addr // address in the network to data address
	targets   map[string]*target        // by service id
	names     map[string]name
	pointers  map[netip.Addr]string
	// gone holds addresses that lately left, oldest first: who still talks to
	// them is told so instead of waiting for an answer.
	gone []netip.Addr
}

// target is a service and where its new connections may go. A target that did
// not change is the same pointer from view to view.
type target struct {
	svc      *cluster.VirtualService
	backends []netip.Addr // sorted
}

// maxGone bounds how many departed addresses are remembered in a network.
const maxGone = 256

// view derives a network's view; old is the one before it, or nil.
func (n *netItems) view(old *view, self netip.Addr) *view {
	v := &view{
		net: *n.net, self: self,
		remote:  map[netip.Addr]netip.Addr{},
		targets: map[string]*target{},
	}
	for _, p := range n.peers {
		v.peers = append(v.peers, *p)
		if p.NodeAddr.Is4() && p.DataAddr.Is4() && p.DataAddr != self {
			v.remote[p.NodeAddr] = p.DataAddr
		}
	}
	slices.SortFunc(v.peers, func(a, b cluster.Peer) int { return cmp.Compare(a.NodeID, b.NodeID) })
	serving := map[string][]netip.Addr{}
	for _, e := range n.endpoints {
		if !e.Addr.Is4() {
			continue
		}
		v.endpoints = append(v.endpoints, e)
		if e.DataAddr != self && e.DataAddr.Is4() {
			v.remote[e.Addr] = e.DataAddr
		}
		if e.Serving && e.ServiceID != "" {
			serving[e.ServiceID] = append(serving[e.ServiceID], e.Addr)
		}
	}
	slices.SortFunc(v.endpoints, func(a, b *cluster.Endpoint) int { return cmp.Compare(a.TaskID, b.TaskID) })
	for _, s := range n.services {
		t := &target{svc: s, backends: serving[s.ServiceID]}
		slices.SortFunc(t.backends, netip.Addr.Compare)
		t.backends = slices.Compact(t.backends)
		if old != nil {
			if was := old.targets[s.ServiceID]; was != nil && was.equal(t) {
				t = was
			}
		}
		v.targets[s.ServiceID] = t
	}
	v.gone = v.departed(old)
	v.indexNames()
	return v
}

func (t *target) equal(u *target) bool {
	return t.svc.Name == u.svc.Name && t.svc.VIP == u.svc.VIP &&
		slices.Equal(t.svc.Aliases, u.svc.Aliases) &&
		slices.Equal(t.svc.Ports, u.svc.Ports) &&
		slices.Equal(t.backends, u.backends)
}

// departed returns the addresses old had and v has not, after those that left
// before and did not come back.
func (v *view) departed(old *view) []netip.Addr {
	if old == nil {
		return nil
	}
	here := make(map[netip.Addr]bool, len(v.endpoints))
	for _, e := range v.endpoints {
		here[e.Addr] = true
	}
	var gone []netip.Addr
	add := func(a netip.Addr) {
		if !here[a] {
			here[a] = true // once
			gone = append(gone, a)
		}
	}
	for _, a := range old.gone {
		add(a)
	}
	for _, e := range old.endpoints {
		add(e.Addr)
	}
	return gone[max(0, len(gone)-maxGone):]
}

// port is a published port.
type port struct {
	proto  uint8 // IPPROTO_…
	number uint16
}

// publication is where a published port leads.
type publication struct {
	*target
	port uint16 // of the back ends
}

// published returns the ports an ingress network's services publish. If two
// claim one, the lower service id has it.
func (v *view) published() map[port]publication {
	out := map[port]publication{}
	for _, id := range sortedKeys(v.targets) {
		t := v.targets[id]
		for _, p := range t.svc.Ports {
			proto, ok := protocols[string(p.Protocol)]
			if !ok || p.PublishedPort == 0 || p.PublishedPort > 65535 || p.TargetPort == 0 || p.TargetPort > 65535 ||
				p.PublishMode == swarm.PortConfigPublishModeHost {
				continue
			}
			k := port{proto, uint16(p.PublishedPort)}
			if _, taken := out[k]; !taken {
				out[k] = publication{t, uint16(p.TargetPort)}
			}
		}
	}
	return out
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
