// Package allocate gives out what may be held once only: the subnets and VNIs of
// networks, the virtual addresses and published ports of services, and the
// addresses of tasks and nodes. The leader runs it. It writes those fields and
// nothing else, but for saying on a waiting task why it waits, and for letting it
// on to PENDING when it has its addresses: that step is observed, not logged, for
// it follows from what is logged.
package allocate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// The ranges that are given out unasked.
const (
	firstVNI    = 4096
	lastVNI     = 1<<24 - 1
	firstPort   = 30000
	lastPort    = 32767
	defaultBits = 24
)

var defaultPool = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}

// Plan returns the writes that give everything in the view what it lacks, and
// the tasks that lack nothing and may be scheduled. The ledger is brought up to
// date with the view first and then notes what is given.
func (l *ledger) Plan(v store.View) (todo pass.Todo, ready []store.Observation) {
	l.follow(v)
	p := &planner{ledger: l, v: v}
	for _, n := range v.Networks() {
		if n.Spec.Ingress {
			p.ingress = n
		}
	}
	p.networks()
	p.services()
	p.nodes()
	p.tasks()
	return p.todo, p.ready
}

type planner struct {
	*ledger
	v       store.View
	ingress *cluster.Network
	todo    pass.Todo
	ready   []store.Observation
}

func (p *planner) networks() {
	var wait []*cluster.Network
	for _, n := range p.v.Networks() {
		if n.Overlay() && !n.Subnet.IsValid() && !n.PendingDelete {
			wait = append(wait, n)
		}
	}
	slices.SortStableFunc(wait, func(a, b *cluster.Network) int {
		if a.Spec.Ingress != b.Spec.Ingress {
			if a.Spec.Ingress {
				return -1
			}
			return 1
		}
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	var used []netip.Prefix
	for _, n := range p.v.Networks() {
		if n.Subnet.IsValid() {
			used = append(used, n.Subnet)
		}
	}
	taken := maps.Clone(p.vnis)
	for _, n := range wait {
		c := *n
		err := p.subnet(&c, used)
		c.AllocErr = ""
		if err != nil {
			c = *n
			c.AllocErr = err.Error()
		} else {
			used = append(used, c.Subnet)
			c.VNI = freeVNI(taken)
			taken[c.VNI] = c.ID
		}
		if !reflect.DeepEqual(c, *n) {
			p.todo.Add(store.UpdateNetwork(&c))
		}
	}
}

func freeVNI(taken map[uint32]string) uint32 {
	for vni := uint32(firstVNI); vni < lastVNI; vni++ {
		if taken[vni] == "" {
			return vni
		}
	}
	return 0
}

// subnet finds a network its subnet and gateway.
func (p *planner) subnet(n *cluster.Network, used []netip.Prefix) error {
	cfg := ipamOf(n.Spec)
	if cfg != nil && cfg.Subnet.IsValid() {
		n.Subnet = cfg.Subnet.Masked()
		if n.Subnet.Bits() > 30 {
			return fmt.Errorf("subnet %s is too small", n.Subnet)
		}
		if slices.ContainsFunc(used, n.Subnet.Overlaps) {
			return cluster.Conflictf("Pool overlaps with other one on this address space")
		}
	} else {
		var ok bool
		if n.Subnet, ok = p.freeSubnet(used); !ok {
			return fmt.Errorf("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network")
		}
	}
	lo, _ := bounds(n.Subnet)
	n.Gateway = address(lo + 1)
	if cfg != nil && cfg.Gateway.IsValid() {
		if !n.Subnet.Contains(cfg.Gateway) {
			return fmt.Errorf("gateway %s is not in subnet %s", cfg.Gateway, n.Subnet)
		}
		n.Gateway = cfg.Gateway
	}
	return nil
}

// freeSubnet cuts the next free piece out of the swarm's pools.
func (p *planner) freeSubnet(used []netip.Prefix) (netip.Prefix, bool) {
	pools, bits := defaultPool, defaultBits
	if c := p.v.Cluster(); c != nil {
		if len(c.DefaultAddrPool) > 0 {
			pools = c.DefaultAddrPool
		}
		if c.SubnetSize > 0 {
			bits = int(c.SubnetSize)
		}
	}
	for _, whole := range pools {
		if !whole.Addr().Is4() || bits < whole.Bits() || bits > 30 {
			continue
		}
		lo, hi := bounds(whole)
		step := uint64(1) << (32 - bits)
		for at := uint64(lo); at <= uint64(hi); at += step {
			piece := netip.PrefixFrom(address(uint32(at)), bits)
			if !slices.ContainsFunc(used, piece.Overlaps) {
				return piece, true
			}
		}
	}
	return netip.Prefix{}, false
}

// services gives each service whose spec is new its ports and virtual addresses.
func (p *planner) services() {
	var wait []*cluster.Service
	for _, s := range p.fresh {
		wait = append(wait, s)
	}
	slices.SortFunc(wait, func(a, b *cluster.Service) int {
		return cmp.Or(cmp.Compare(a.SpecVersion, b.SpecVersion), cmp.Compare(a.ID, b.ID))
	})
	for _, s := range wait {
		c := *s
		mark := len(p.tentative)
		ready, err := p.service(&c)
		if err != nil || !ready {
			p.giveBack(mark)
			c = *s
		}
		switch {
		case err != nil:
			c.AllocErr = err.Error()
		case ready:
			c.Allocated, c.AllocErr = s.SpecVersion, ""
			for _, pc := range c.Ports {
				if !cluster.HostPort(pc) {
					p.promise(s.ID, portOf(pc))
				}
			}
		}
		if c.Allocated != s.Allocated || c.AllocErr != s.AllocErr {
			p.todo.Add(store.UpdateService(&c))
		}
	}
}

// service fills in Ports and VIPs; ready is false while a network it needs has
// no subnet yet.
func (p *planner) service(s *cluster.Service) (ready bool, err error) {
	needs, ready, err := p.networksOf(s.Spec)
	if err != nil || !ready {
		return false, err
	}
	if s.Ports, err = p.published(s); err != nil {
		return false, err
	}
	had := map[string]netip.Addr{}
	for _, vip := range s.VIPs {
		had[vip.NetworkID] = vip.Addr
	}
	s.VIPs = nil
	for _, n := range needs {
		if n.subnetless {
			continue
		}
		vip := cluster.VIP{NetworkID: n.id}
		switch {
		case cluster.DNSRR(s.Spec):
		case had[n.id].IsValid():
			vip.Addr = had[n.id]
		default:
			var ok bool
			if vip.Addr, ok = p.give(n.id); !ok {
				return false, p.exhausted(n.id)
			}
		}
		s.VIPs = append(s.VIPs, vip)
	}
	return true, nil
}

// need is a network that a service's tasks join.
type need struct {
	id         string
	aliases    []string
	subnetless bool // a node's own network: no address of ours
}

// networksOf lists the networks of a spec's tasks, the ingress network first.
func (p *planner) networksOf(spec *swarm.ServiceSpec) (needs []need, ready bool, err error) {
	if cluster.IngressPorts(spec) {
		if p.ingress == nil {
			return nil, false, fmt.Errorf("service needs ingress network, but no ingress network is present")
		}
		needs = append(needs, need{id: p.ingress.ID})
	}
	for _, at := range spec.TaskTemplate.Networks {
		n := p.v.Network(at.Target)
		if n == nil {
			n = p.v.NetworkByName(at.Target)
		}
		switch {
		case n == nil && (at.Target == "host" || at.Target == "bridge" || at.Target == "none"):
			needs = append(needs, need{id: at.Target, aliases: at.Aliases, subnetless: true})
		case n == nil:
			return nil, false, fmt.Errorf("network %s not found", at.Target)
		case !slices.ContainsFunc(needs, func(o need) bool { return o.id == n.ID }):
			needs = append(needs, need{id: n.ID, aliases: at.Aliases, subnetless: !n.Overlay()})
		}
	}
	for _, nd := range needs {
		if nd.subnetless || p.pools[nd.id] != nil {
			continue
		}
		if n := p.v.Network(nd.id); n.AllocErr != "" {
			return nil, false, fmt.Errorf("network %s: %s", n.Spec.Name, n.AllocErr)
		}
		return nil, false, nil
	}
	return needs, true, nil
}

func (p *planner) exhausted(networkID string) error {
	n := p.v.Network(networkID)
	return fmt.Errorf("could not find an available IP: network %s (%s) has no free address left", n.Spec.Name, n.Subnet)
}

// published returns the spec's ports with the open ones filled in: with those
// the service already has where they fit, or with the next free ones.
func (p *planner) published(s *cluster.Service) ([]swarm.PortConfig, error) {
	if s.Spec.EndpointSpec == nil {
		return nil, nil
	}
	ports := slices.Clone(s.Spec.EndpointSpec.Ports)
	mine := map[port]bool{}
	for i, pc := range ports {
		if pc.Protocol == "" {
			ports[i].Protocol = network.TCP
		}
		if pc.PublishMode == "" {
			ports[i].PublishMode = swarm.PortConfigPublishModeIngress
		}
		if cluster.HostPort(pc) || pc.PublishedPort == 0 {
			continue
		}
		if owner := p.ports[portOf(pc)]; owner != "" && owner != s.ID {
			return nil, fmt.Errorf("port '%d' is already in use by service '%s' (%s) as an ingress port",
				pc.PublishedPort, p.nameOf(owner), owner)
		}
		mine[portOf(pc)] = true
	}
	for i := range ports {
		if cluster.HostPort(ports[i]) || ports[i].PublishedPort != 0 {
			continue
		}
		if err := p.dynamic(s, &ports[i], mine); err != nil {
			return nil, err
		}
		mine[portOf(ports[i])] = true
	}
	return ports, nil
}

func (p *planner) nameOf(serviceID string) string {
	if s := p.v.Service(serviceID); s != nil {
		return s.Spec.Name
	}
	return serviceID
}

func (p *planner) dynamic(s *cluster.Service, pc *swarm.PortConfig, mine map[port]bool) error {
	for _, old := range s.Ports { // the one it had, so that it stays
		same := old.TargetPort == pc.TargetPort && old.Protocol == pc.Protocol && !cluster.HostPort(old)
		if same && old.PublishedPort >= firstPort && old.PublishedPort <= lastPort && !mine[portOf(old)] {
			pc.PublishedPort = old.PublishedPort
			return nil
		}
	}
	for n := uint32(firstPort); n <= lastPort; n++ {
		k := port{pc.Protocol, n}
		if p.ports[k] == "" && !mine[k] {
			pc.PublishedPort = n
			return nil
		}
	}
	return fmt.Errorf("no port between %d and %d is free", firstPort, lastPort)
}

// nodes gives every ready node its own address in the ingress network, and takes
// away those in networks that are gone.
func (p *planner) nodes() {
	for _, n := range p.v.Nodes() {
		c := *n
		c.Addrs = maps.Clone(n.Addrs)
		maps.DeleteFunc(c.Addrs, func(id string, _ netip.Addr) bool { return p.v.Network(id) == nil })
		if p.ingress != nil && n.Status.State == swarm.NodeStateReady && !c.Addrs[p.ingress.ID].IsValid() {
			if a, ok := p.give(p.ingress.ID); ok {
				if c.Addrs == nil {
					c.Addrs = map[string]netip.Addr{}
				}
				c.Addrs[p.ingress.ID] = a
			}
		}
		if !maps.Equal(c.Addrs, n.Addrs) {
			p.todo.Add(store.UpdateNode(&c))
		}
	}
}

// tasks gives new tasks their addresses, and lets those that have theirs on to be
// scheduled.
func (p *planner) tasks() {
	var wait []*cluster.Task
	for _, t := range p.waiting {
		if t.Desired <= cluster.StateRunning {
			wait = append(wait, t)
		}
	}
	slices.SortStableFunc(wait, func(a, b *cluster.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ServiceID, b.ServiceID),
			cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
	})
	for _, t := range wait {
		mark := len(p.tentative)
		at, ready, err := p.task(t)
		switch {
		case err != nil:
			p.giveBack(mark)
			if t.Status.Err != err.Error() {
				p.todo.Add(store.SetStatus(t.ID, cluster.Status{State: cluster.StateNew, Message: t.Status.Message, Err: err.Error()}))
			}
		case len(at) > 0:
			c := *t
			c.Networks = at
			p.todo.Add(store.UpdateTask(&c))
		case ready:
			p.ready = append(p.ready, store.Observation{TaskID: t.ID, Status: cluster.Status{
				State: cluster.StatePending, At: t.UpdatedAt, Message: "pending task scheduling",
			}})
		}
	}
}

func (p *planner) task(t *cluster.Task) (at []cluster.Attachment, ready bool, err error) {
	if len(t.Networks) > 0 {
		return nil, true, nil // it has them already
	}
	if t.Attach != nil {
		return p.attach(t)
	}
	sv := p.v.SpecOf(t.ServiceID, t.SpecVersion)
	if sv == nil {
		return nil, false, nil
	}
	needs, ready, err := p.networksOf(sv.Spec)
	if err != nil || !ready {
		return nil, false, err
	}
	for _, n := range needs {
		a := cluster.Attachment{NetworkID: n.id, Aliases: n.aliases}
		if !n.subnetless {
			var ok bool
			if a.Addr, ok = p.give(n.id); !ok {
				return nil, false, p.exhausted(n.id)
			}
		}
		at = append(at, a)
	}
	return at, true, nil
}

// attach gives a plain container its address, the one it asked for if it did.
func (p *planner) attach(t *cluster.Task) ([]cluster.Attachment, bool, error) {
	n := p.v.Network(t.Attach.NetworkID)
	if n == nil {
		return nil, false, fmt.Errorf("network %s not found", t.Attach.NetworkID)
	}
	if p.pools[n.ID] == nil {
		if n.AllocErr != "" {
			return nil, false, fmt.Errorf("network %s: %s", n.Spec.Name, n.AllocErr)
		}
		return nil, false, nil
	}
	a := t.Attach.Wanted
	if a.IsValid() {
		if !p.claim(n.ID, a) {
			return nil, false, cluster.Conflictf("Address already in use: %s in network %s (%s)", a, n.Spec.Name, n.Subnet)
		}
	} else {
		var ok bool
		if a, ok = p.give(n.ID); !ok {
			return nil, false, p.exhausted(n.ID)
		}
	}
	return []cluster.Attachment{{NetworkID: n.ID, Addr: a}}, true, nil
}
