package allocate

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// ledger counts who holds what. It follows the store: every pass brings it up to
// date with the objects that changed, so that it is never more than a shortcut
// for reading them all. What a pass gives out is noted as tentative until the
// store shows it.
type ledger struct {
	pools map[string]*pool // by network
	vnis  map[uint32]string
	ports map[port]string // by whom

	nets      map[string]*netHold
	services  map[string]*hold // those that hold something
	listed    []*cluster.Service
	fresh     map[string]*cluster.Service // those whose spec is not allocated as yet
	nodes     map[string]*hold
	tasks     map[string]*hold
	waiting   map[string]*cluster.Task // those without addresses as yet
	changes   pass.Changes
	round     uint64
	tentative []addr
	promised  []port // like tentative
}

type port struct {
	proto  network.IPProtocol
	number uint32
}

type addr struct {
	network string
	addr    netip.Addr
}

// hold is what one service, task or node holds.
type hold struct {
	version uint64 // of a node, when it was read
	round   uint64
	addrs   []addr
	ports   []port
}

type netHold struct {
	net   *cluster.Network
	round uint64
}

func newLedger() *ledger {
	return &ledger{
		pools: map[string]*pool{}, vnis: map[uint32]string{}, ports: map[port]string{},
		nets: map[string]*netHold{}, nodes: map[string]*hold{},
		services: map[string]*hold{}, fresh: map[string]*cluster.Service{},
		tasks: map[string]*hold{}, waiting: map[string]*cluster.Task{},
	}
}

// follow brings the ledger up to date with the store.
func (l *ledger) follow(v store.View) {
	for _, a := range l.tentative {
		l.free(a)
	}
	for _, k := range l.promised {
		delete(l.ports, k)
	}
	l.tentative, l.promised = l.tentative[:0], l.promised[:0]
	l.round++
	l.followNetworks(v)
	l.followServices(v.Services())
	l.followNodes(v.Nodes())
	l.followTasks(v)
}

func (l *ledger) followServices(list []*cluster.Service) {
	changed, gone := pass.Since(l.listed, list, func(s *cluster.Service) string { return s.ID })
	l.listed = list
	for _, s := range gone {
		l.release(l.services[s.ID])
		delete(l.services, s.ID)
		delete(l.fresh, s.ID)
	}
	for _, s := range changed {
		delete(l.fresh, s.ID)
		if s.Allocated != s.SpecVersion {
			l.fresh[s.ID] = s
		}
		h := l.services[s.ID]
		l.release(h)
		if len(s.VIPs) == 0 && len(s.Ports) == 0 {
			delete(l.services, s.ID)
			continue
		}
		if h == nil {
			h = &hold{}
			l.services[s.ID] = h
		}
		for _, vip := range s.VIPs {
			l.hold(h, vip.NetworkID, vip.Addr, s.CreatedAt)
		}
		l.holdPorts(h, s)
	}
}

func (l *ledger) followNodes(list []*cluster.Node) {
	for _, n := range list {
		h := l.nodes[n.ID]
		if h == nil {
			h = &hold{}
			l.nodes[n.ID] = h
		}
		h.round = l.round
		if h.version == n.Version {
			continue
		}
		h.version = n.Version
		l.release(h)
		for id, a := range n.Addrs {
			l.hold(h, id, a, n.CreatedAt)
		}
	}
	for id, h := range l.nodes {
		if h.round != l.round {
			l.release(h)
			delete(l.nodes, id)
		}
	}
}

func (l *ledger) followTasks(v store.View) {
	changed, gone := l.changes.Since(v.Tasks())
	for _, t := range gone {
		delete(l.waiting, t.ID)
		l.release(l.tasks[t.ID])
		delete(l.tasks, t.ID)
	}
	for _, t := range changed {
		if t.Status.State == cluster.StateNew {
			l.waiting[t.ID] = t
		} else {
			delete(l.waiting, t.ID)
		}
		h := l.tasks[t.ID]
		l.release(h)
		if len(t.Networks) == 0 {
			continue
		}
		if t.Status.State.Terminal() {
			delete(l.tasks, t.ID)
			if l.round == 1 { // it may be the last to have been given one
				l.goOnAfter(t)
			}
			continue
		}
		if h == nil {
			h = &hold{}
			l.tasks[t.ID] = h
		}
		for _, at := range t.Networks {
			l.hold(h, at.NetworkID, at.Addr, t.CreatedAt)
		}
	}
}

func (l *ledger) goOnAfter(t *cluster.Task) {
	for _, at := range t.Networks {
		if p := l.pools[at.NetworkID]; p != nil {
			p.goOnAfter(at.Addr, t.CreatedAt.UnixNano())
		}
	}
}

func (l *ledger) followNetworks(v store.View) {
	for _, n := range v.Networks() {
		h := l.nets[n.ID]
		if h == nil {
			h = &netHold{}
			l.nets[n.ID] = h
		}
		h.round = l.round
		if h.net == n {
			continue
		}
		h.net = n
		if n.VNI != 0 {
			l.vnis[n.VNI] = n.ID
		}
		if p := l.pools[n.ID]; n.Subnet.IsValid() && (p == nil || p.subnet != n.Subnet) {
			l.pools[n.ID] = newPool(n.Subnet, rangeOf(n), n.Gateway)
		}
	}
	for id, h := range l.nets {
		if h.round == l.round {
			continue
		}
		delete(l.nets, id)
		delete(l.pools, id)
		for vni, owner := range l.vnis {
			if owner == id {
				delete(l.vnis, vni)
			}
		}
	}
}

func (l *ledger) hold(h *hold, networkID string, a netip.Addr, created time.Time) {
	if !a.IsValid() {
		return
	}
	h.addrs = append(h.addrs, addr{networkID, a})
	if p := l.pools[networkID]; p != nil {
		p.take(a)
		if l.round == 1 { // a new leader goes on where the last one was
			p.goOnAfter(a, created.UnixNano())
		}
	}
}

func (l *ledger) holdPorts(h *hold, s *cluster.Service) {
	for _, pc := range s.Ports {
		if cluster.HostPort(pc) || pc.PublishedPort == 0 {
			continue
		}
		k := portOf(pc)
		if _, taken := l.ports[k]; !taken {
			l.ports[k] = s.ID
			h.ports = append(h.ports, k)
		}
	}
}

func (l *ledger) release(h *hold) {
	if h == nil {
		return
	}
	for _, a := range h.addrs {
		l.free(a)
	}
	for _, k := range h.ports {
		delete(l.ports, k)
	}
	h.addrs, h.ports = nil, nil
}

func (l *ledger) free(a addr) {
	if p := l.pools[a.network]; p != nil {
		p.free(a.addr)
	}
}

// give takes an address for something that this pass writes.
func (l *ledger) give(networkID string) (netip.Addr, bool) {
	p := l.pools[networkID]
	if p == nil {
		return netip.Addr{}, false
	}
	a, ok := p.give()
	if ok {
		l.tentative = append(l.tentative, addr{networkID, a})
	}
	return a, ok
}

// giveBack undoes the gives since the mark (len(l.tentative) at the time).
func (l *ledger) giveBack(mark int) {
	for _, a := range l.tentative[mark:] {
		l.free(a)
	}
	l.tentative = l.tentative[:mark]
}

// promise takes a port that nobody has for something that this pass writes.
func (l *ledger) promise(serviceID string, k port) {
	if l.ports[k] == "" {
		l.ports[k] = serviceID
		l.promised = append(l.promised, k)
	}
}

// claim takes a given address, unless somebody holds it.
func (l *ledger) claim(networkID string, a netip.Addr) bool {
	p := l.pools[networkID]
	if p == nil || !p.subnet.Contains(a) || p.holds(a) {
		return false
	}
	p.take(a)
	l.tentative = append(l.tentative, addr{networkID, a})
	return true
}

func portOf(pc swarm.PortConfig) port {
	if pc.Protocol == "" {
		return port{network.TCP, pc.PublishedPort}
	}
	return port{pc.Protocol, pc.PublishedPort}
}

func rangeOf(n *cluster.Network) netip.Prefix {
	if c := ipamOf(n.Spec); c != nil {
		return c.Range
	}
	return netip.Prefix{}
}

// ipamOf returns the part of a network's spec that asks for an IPv4 subnet.
func ipamOf(spec *swarm.NetworkSpec) *swarm.IPAMConfig {
	if spec == nil || spec.IPAMOptions == nil {
		return nil
	}
	for i := range spec.IPAMOptions.Configs {
		if c := &spec.IPAMOptions.Configs[i]; !c.Subnet.IsValid() || c.Subnet.Addr().Is4() {
			return c
		}
	}
	return nil
}
