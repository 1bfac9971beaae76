package network

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/overlay"
)

// List returns the host's networks, swarm networks it has a part in included,
// sorted by name.
func (m *Manager) List(ctx context.Context) ([]network.Inspect, error) {
	swarm := m.swarmNetworks()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []network.Inspect
	for _, r := range m.networks {
		out = append(out, m.inspectLocal(r))
	}
	for i := range swarm {
		out = append(out, m.inspectSwarm(&swarm[i]))
	}
	slices.SortFunc(out, func(a, b network.Inspect) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Inspect returns one network by name, id or unique prefix.
func (m *Manager) Inspect(ctx context.Context, ref string) (network.Inspect, error) {
	swarm := m.swarmNetwork(ref)
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.find(ref)
	if err == nil {
		return m.inspectLocal(r), nil
	}
	if swarm != nil {
		return m.inspectSwarm(swarm), nil
	}
	return network.Inspect{}, err
}

// inspectLocal words one of the host's own networks as the API does. m.mu is held.
func (m *Manager) inspectLocal(r *netRecord) network.Inspect {
	return network.Inspect{Containers: m.containers(r.ID), Network: network.Network{
		Name: r.Name, ID: r.ID, Created: r.Created, Scope: "local", Driver: r.Driver, EnableIPv4: true,
		IPAM: r.IPAM, Internal: r.Internal, Attachable: r.Attachable,
		Options: maps.Clone(r.Options), Labels: maps.Clone(r.Labels),
	}}
}

// inspectSwarm words a swarm network. m.mu is held.
func (m *Manager) inspectSwarm(n *overlay.Network) network.Inspect {
	options := map[string]string{"com.docker.network.driver.overlay.vxlanid_list": fmt.Sprint(n.VNI)}
	maps.Copy(options, n.Options)
	out := network.Inspect{Containers: m.containers(n.ID), Network: network.Network{
		Name: n.Name, ID: n.ID, Scope: "swarm", Driver: driverOverlay, EnableIPv4: true,
		IPAM:     network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: n.Subnet, Gateway: n.Gateway}}},
		Internal: n.Internal, Attachable: n.Attachable, Ingress: n.Ingress,
		Options: options, Labels: maps.Clone(n.Labels),
	}}
	for _, p := range n.Peers {
		name := p.NodeID
		if len(name) > 12 {
			name = name[:12]
		}
		out.Peers = append(out.Peers, network.PeerInfo{Name: name, IP: p.DataAddr})
	}
	for i := range n.Services {
		if out.Services == nil {
			out.Services = map[string]network.ServiceInfo{}
		}
		out.Services[n.Services[i].Name] = serviceInfo(&n.Services[i])
	}
	return out
}

func serviceInfo(s *cluster.VirtualService) network.ServiceInfo {
	info := network.ServiceInfo{VIP: s.VIP, Ports: []string{}, Tasks: []network.Task{}}
	for _, p := range s.Ports {
		info.Ports = append(info.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.TargetPort, p.PublishedPort))
	}
	return info
}

// containers are those of this host that are in a network. m.mu is held.
func (m *Manager) containers(networkID string) map[string]network.EndpointResource {
	out := map[string]network.EndpointResource{}
	for id, s := range m.sandboxes {
		ep := s.in(networkID)
		if ep == nil {
			continue
		}
		res := network.EndpointResource{Name: s.Name, EndpointID: ep.EndpointID}
		if ep.Addr.IsValid() {
			res.IPv4Address = netip.PrefixFrom(ep.Addr.Addr(), ep.Addr.Bits())
			if mac, err := net.ParseMAC(ep.MAC); err == nil {
				res.MacAddress = network.HardwareAddr(mac)
			}
		}
		if ep.Hidden {
			res.Name = "gateway_" + id[:min(12, len(id))]
		}
		out[id] = res
	}
	return out
}
