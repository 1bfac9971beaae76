package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/overlay"
)

// Apply brings the swarm's part of the host to the wanted items (kinds network,
// peer, endpoint, service; others are ignored): the whole set when complete,
// else what changed. It returns when the data path follows them. Idempotent.
func (m *Manager) Apply(ctx context.Context, complete bool, items []cluster.Item) error {
	if err := m.learnSelf(items); err != nil {
		return err
	}
	err := m.overlay.Apply(ctx, complete, items)
	m.noteApplied()
	if len(m.overlay.Networks()) == 0 {
		return err
	}
	_, gwErr := m.gatewayNetwork(ctx)
	return errors.Join(err, gwErr)
}

// dataAddr is this node's address for overlay traffic: the configured one, else
// what the items told of it.
func (m *Manager) dataAddr() netip.Addr {
	if a := m.cfg.DataAddr(); a.IsValid() {
		return a
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self
}

// learnSelf finds out this node's address for overlay traffic where nobody told
// it: the one of the swarm's addresses that is this host's own, or the one that
// this host has towards another node.
func (m *Manager) learnSelf(items []cluster.Item) error {
	if m.dataAddr().IsValid() {
		return nil
	}
	own, err := m.links.addresses()
	if err != nil {
		return err
	}
	var self, peer netip.Addr
	for _, it := range items {
		switch {
		case it.Endpoint != nil && own[it.Endpoint.DataAddr]:
			self = it.Endpoint.DataAddr
		case it.Peer != nil && own[it.Peer.DataAddr]:
			self = it.Peer.DataAddr
		case it.Peer != nil && it.Peer.DataAddr.IsValid():
			peer = it.Peer.DataAddr
		}
	}
	if !self.IsValid() && peer.IsValid() {
		if self, err = m.links.towards(peer); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.self = self
	return nil
}

// LeaveSwarm removes every swarm network from the host.
func (m *Manager) LeaveSwarm(ctx context.Context) error {
	m.mu.Lock()
	m.self = netip.Addr{}
	m.mu.Unlock()
	return m.overlay.LeaveSwarm(ctx) // the gateway network stays, as Docker's does
}

// attachSwarm gives a sandbox its place in a swarm network. Its place in the
// gateway network must be there.
func (m *Manager) attachSwarm(ctx context.Context, s *sandbox, ep *endpoint) error {
	req := overlay.AttachRequest{NetworkID: ep.NetworkID, ID: s.ContainerID, Addr: ep.Addr.Addr(), NetNS: s.NetNS, IfName: ep.IfName}
	if gw := s.gateway(); gw != nil && gw.Hidden {
		req.Gateway = &overlay.GatewayInfo{IfName: gw.IfName, Addr: gw.Addr.Addr(), Via: gw.Gateway}
	}
	return m.overlay.Attach(ctx, req)
}

func (m *Manager) detachSwarm(ctx context.Context, s *sandbox, ep *endpoint) error {
	return m.overlay.Detach(ctx, ep.NetworkID, s.ContainerID)
}

func (m *Manager) swarmNetworks() []overlay.Network { return m.overlay.Networks() }

// swarmNetwork returns a swarm network by id, name or unique prefix of its id,
// or nil.
func (m *Manager) swarmNetwork(ref string) *overlay.Network {
	nets := m.overlay.Networks()
	var byPrefix []*overlay.Network
	for i := range nets {
		switch n := &nets[i]; {
		case n.ID == ref || n.Name == ref:
			return n
		case ref != "" && strings.HasPrefix(n.ID, ref):
			byPrefix = append(byPrefix, n)
		}
	}
	if len(byPrefix) == 1 {
		return byPrefix[0]
	}
	return nil
}

// placeInSwarm is place for a swarm network, whose addresses the swarm gives out.
func placeInSwarm(s *sandbox, n *overlay.Network, er EndpointRequest) (*endpoint, error) {
	if s.in(n.ID) != nil {
		return nil, cluster.Deniedf("endpoint with name %s already exists in network %s", s.Name, n.Name)
	}
	if !er.Addr.IsValid() || !n.Subnet.Contains(er.Addr) {
		return nil, cluster.Invalidf("network %s: %s is no address that the swarm gave", n.Name, er.Addr)
	}
	mac := cluster.MAC(er.Addr)
	ep := &endpoint{Kind: driverOverlay, IfName: s.nextIf(), Links: er.Links, Priority: er.GwPriority,
		External: !n.Internal, Ingress: n.Ingress, Task: er.task,
		Endpoint: Endpoint{NetworkID: n.ID, NetworkName: n.Name, EndpointID: newID(), Aliases: er.Aliases,
			Addr: netip.PrefixFrom(er.Addr, n.Subnet.Bits()), MAC: net.HardwareAddr(mac[:]).String()}}
	if !ep.Ingress {
		ep.DNSNames = dnsNames(s, er.Aliases)
	}
	return ep, nil
}

// inOrder returns wishes in the order of the interfaces: the ingress network is
// eth0 of a task that has it. m.mu is held.
func (m *Manager) inOrder(eps []EndpointRequest) []EndpointRequest {
	out := slices.Clone(eps)
	ingress := func(er EndpointRequest) int {
		if n := m.swarmNetwork(er.Network); n != nil && n.Ingress {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b EndpointRequest) int { return ingress(a) - ingress(b) })
	return out
}

// needsGateway reports whether s has a swarm network with a way out and needs a
// place in the gateway network for it, which it has not yet. A bridge with a way
// out of its own will do, but not for a task on the ingress network.
func (s *sandbox) needsGateway() bool {
	var bridge, external, ingress bool
	for _, ep := range s.Endpoints {
		if ep.Hidden {
			return false
		}
		bridge = bridge || ep.Kind == driverBridge && ep.Gateway.IsValid()
		external = external || ep.External
		ingress = ingress || ep.Ingress
	}
	return ingress || external && !bridge
}

// placeGateway adds the place in the gateway network that s needs. m.mu is held.
func (m *Manager) placeGateway(s *sandbox) error {
	if !s.needsGateway() {
		return nil
	}
	ep, err := m.place(s, EndpointRequest{Network: gatewayNetwork})
	if err != nil {
		return err
	}
	ep.Hidden = true
	s.Endpoints = append(s.Endpoints, *ep)
	return nil
}

// prepareGateway makes the gateway network if one of the wishes will need it.
func (m *Manager) prepareGateway(ctx context.Context, eps []EndpointRequest) error {
	for _, er := range eps {
		if m.swarmNetwork(er.Network) != nil {
			_, err := m.gatewayNetwork(ctx)
			return err
		}
	}
	return nil
}

// gatewayNetwork returns the network by which tasks reach the outside, and makes
// it if there is none. Its containers cannot reach each other.
func (m *Manager) gatewayNetwork(ctx context.Context) (*netRecord, error) {
	if r := m.known(gatewayNetwork); r != nil {
		return r, nil
	}
	r, err := newRecord(network.CreateRequest{Name: gatewayNetwork, Options: map[string]string{
		optName: gatewayLink, optICC: "false", optMasquerade: "true"}}, m.cfg.MTU)
	if err != nil {
		return nil, err
	}
	if err := m.nets.take(ctx); err != nil {
		return nil, err
	}
	defer m.nets.give()
	if have := m.known(gatewayNetwork); have != nil { // made while we waited
		return have, nil
	}
	if err := m.create(r); err != nil {
		return nil, fmt.Errorf("network %s: %w", gatewayNetwork, err)
	}
	m.publish(events.ActionCreate, r)
	return r, nil
}

func (m *Manager) known(name string) *netRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.find(name)
	if err != nil {
		return nil
	}
	return r
}
