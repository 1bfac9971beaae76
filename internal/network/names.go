package network

import (
	"math/rand/v2"
	"net/netip"
	"strings"
)

// lookup finds what a container means by a name: the networks it is in are asked
// in order, and the first that knows the name decides. NAME.NETWORK asks one.
func (m *Manager) lookup(container, name string) ([]netip.Addr, bool) {
	s := m.sandbox(container)
	if s == nil || name == "" {
		return nil, false
	}
	for i := range s.Endpoints {
		if addrs, ok := m.lookupIn(&s.Endpoints[i], name); ok {
			return addrs, true
		}
	}
	at := strings.LastIndexByte(name, '.')
	if at <= 0 {
		return nil, false
	}
	for i := range s.Endpoints {
		if ep := &s.Endpoints[i]; strings.EqualFold(ep.NetworkName, name[at+1:]) {
			return m.lookupIn(ep, name[:at])
		}
	}
	return nil, false
}

// unsure reports whether a container is in a swarm network of which this daemon
// has not been told yet: it cannot say then that a name does not exist.
func (m *Manager) unsure(container string) bool {
	s := m.sandbox(container)
	if s == nil {
		return true
	}
	for i := range s.Endpoints {
		if ep := &s.Endpoints[i]; ep.Kind == driverOverlay && m.swarmNetwork(ep.NetworkID) == nil {
			return true
		}
	}
	return false
}

// lookupIn finds a name as the holder of ep knows it in that network.
func (m *Manager) lookupIn(ep *endpoint, name string) ([]netip.Addr, bool) {
	if len(ep.DNSNames) == 0 {
		return nil, false // a network without names
	}
	if ep.Kind == driverOverlay {
		if addrs, ok := m.overlay.Lookup(ep.NetworkID, name); ok {
			return addrs, true
		} // short ids and the like are known on their own host alone
	}
	for _, l := range ep.Links {
		if ref, alias := cutLink(l); strings.EqualFold(alias, name) && !strings.EqualFold(ref, name) {
			return m.lookupNamed(ep.NetworkID, ref)
		}
	}
	return m.lookupNamed(ep.NetworkID, name)
}

// lookupNamed finds the containers that answer to a name in a bridge network.
func (m *Manager) lookupNamed(networkID, name string) ([]netip.Addr, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.Addr
	for _, s := range m.sandboxes {
		ep := s.in(networkID)
		if ep == nil {
			continue
		}
		for _, n := range ep.DNSNames {
			if strings.EqualFold(n, name) {
				out = append(out, ep.Addr.Addr())
				break
			}
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out, len(out) > 0
}

// lookupAddr finds the name, with its network's, of an address in one of a
// container's networks.
func (m *Manager) lookupAddr(container string, addr netip.Addr) (string, bool) {
	s := m.sandbox(container)
	if s == nil {
		return "", false
	}
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		if len(ep.DNSNames) == 0 {
			continue
		}
		if ep.Kind == driverOverlay {
			if name, ok := m.overlay.LookupAddr(ep.NetworkID, addr); ok {
				return name + "." + ep.NetworkName, true
			}
			continue
		}
		if name := m.nameOf(ep, addr); name != "" {
			return name + "." + ep.NetworkName, true
		}
	}
	return "", false
}

func (m *Manager) nameOf(in *endpoint, addr netip.Addr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sandboxes {
		if ep := s.in(in.NetworkID); ep != nil && ep.Addr.Addr() == addr && len(ep.DNSNames) > 0 {
			return ep.DNSNames[0]
		}
	}
	return ""
}

// upstreams are the servers that a container's questions about the outside go
// to: none for one that has no way out.
func (m *Manager) upstreams(container string) []upstream {
	s := m.sandbox(container)
	if s == nil || s.gateway() == nil {
		return nil
	}
	var out []upstream
	if len(s.DNS) > 0 {
		for _, a := range s.DNS {
			up := upstream{addr: a, netns: s.NetNS}
			if a.IsLoopback() {
				up.netns = "" // it means the host's
			}
			out = append(out, up)
		}
		return out
	}
	servers := m.cfg.ForwardDNS
	if len(servers) == 0 {
		servers = readResolvConf(m.cfg.ResolvConf).servers
	}
	for _, a := range servers {
		out = append(out, upstream{addr: a})
	}
	return out
}
