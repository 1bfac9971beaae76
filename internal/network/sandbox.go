package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// Join makes the sandbox of a container that is about to start. It is
// idempotent: a sandbox that is there already is returned as it is.
func (m *Manager) Join(ctx context.Context, req SandboxRequest) (*Sandbox, error) {
	give, err := m.boxes.take(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	defer give()
	if s := m.sandbox(req.ContainerID); s != nil {
		if s.NetNS == "" || namespace.At(s.NetNS) {
			return s.public(), nil
		}
		if err := m.dismantle(ctx, s); err != nil { // its namespace went with a reboot
			return nil, err
		}
	}
	s, err := newSandbox(req)
	if err != nil {
		return nil, err
	}
	if req.Endpoints, err = m.admitAll(ctx, s, req.Endpoints, req.Plain); err != nil {
		return nil, err
	}
	if err = m.prepareGateway(ctx, req.Endpoints); err == nil {
		err = m.reserve(s, req.Endpoints)
	}
	if err != nil {
		m.giveBackAll(context.WithoutCancel(ctx), req.Endpoints)
		return nil, err
	}
	if s, err = m.build(ctx, s, req); err != nil {
		return nil, errors.Join(err, m.dismantle(context.WithoutCancel(ctx), s))
	}
	return s.public(), nil
}

// newSandbox starts a record.
func newSandbox(req SandboxRequest) (*sandbox, error) {
	if req.ContainerID == "" || strings.ContainsAny(req.ContainerID, "/.") {
		return nil, cluster.Invalidf("invalid container id %q", req.ContainerID)
	}
	return &sandbox{ContainerID: req.ContainerID, Name: req.ContainerName, Hostname: req.Hostname, Dir: req.Dir,
		DNS: req.DNS, DNSSearch: req.DNSSearch, DNSOptions: req.DNSOptions, ExtraHosts: req.ExtraHosts}, nil
}

// reserve puts a sandbox with its addresses in force, before anything is built:
// from here on nobody else gets them and its networks cannot be removed.
func (m *Manager) reserve(s *sandbox, wishes []EndpointRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, er := range m.inOrder(wishes) {
		ep, err := m.place(s, er)
		if err != nil {
			return err
		}
		s.Endpoints = append(s.Endpoints, *ep)
	}
	if err := m.placeGateway(s); err != nil {
		return err
	}
	m.sandboxes[s.ContainerID] = s
	return nil
}

// place finds a container's endpoint in a network. m.mu is held.
func (m *Manager) place(s *sandbox, er EndpointRequest) (*endpoint, error) {
	if n := m.swarmNetwork(er.Network); n != nil {
		return placeInSwarm(s, n, er)
	}
	r, err := m.find(er.Network)
	if err != nil {
		return nil, err
	}
	if s.in(r.ID) != nil {
		return nil, cluster.Deniedf("endpoint with name %s already exists in network %s", s.Name, r.Name)
	}
	ep := &endpoint{Kind: r.Driver, Links: er.Links, Priority: er.GwPriority, Endpoint: Endpoint{
		NetworkID: r.ID, NetworkName: r.Name, EndpointID: newID(), Aliases: er.Aliases}}
	if r.Driver != driverBridge {
		return ep, nil
	}
	if er.Addr.IsValid() && !r.Configured {
		if r.named() {
			return nil, cluster.Invalidf("user specified IP address is supported only when connecting to networks with user configured subnets")
		}
		return nil, cluster.Invalidf("user specified IP address is supported on user defined networks only")
	}
	addr, err := pickAddr(r, m.taken(r.ID), er.Addr)
	if err != nil {
		return nil, err
	}
	ep.Addr = netip.PrefixFrom(addr, r.Subnet.Bits())
	if !r.Internal {
		ep.Gateway = r.Gateway
	}
	ep.IfName = s.nextIf()
	ep.HostLink = vethPrefix + ep.EndpointID[:maxIfName-len(vethPrefix)]
	if ep.MAC = er.MAC; ep.MAC == "" {
		mac := cluster.MAC(addr) // nobody's ARP table can be wrong about it
		ep.MAC = net.HardwareAddr(mac[:]).String()
	} else if hw, err := net.ParseMAC(ep.MAC); err != nil || len(hw) != 6 || hw[0]&1 != 0 {
		return nil, cluster.Invalidf("invalid MAC address: %s", er.MAC)
	}
	if r.named() {
		ep.DNSNames = dnsNames(s, er.Aliases)
	}
	return ep, nil
}

// dnsNames are the names a container answers to in a network.
func dnsNames(s *sandbox, aliases []string) []string {
	var out []string
	short := s.ContainerID
	if len(short) > 12 {
		short = short[:12]
	}
	for _, n := range slices.Concat([]string{s.Name}, aliases, []string{short, s.Hostname}) {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// build makes what s says. It returns the record as it is in force, also with
// an error: the caller takes down what is there.
func (m *Manager) build(ctx context.Context, s *sandbox, req SandboxRequest) (*sandbox, error) {
	next := *s
	s = &next
	host := len(s.Endpoints) == 1 && s.Endpoints[0].Kind == driverHost
	if !host {
		var err error
		if s.NetNS, err = m.pool.Take(); err != nil {
			return s, err
		}
	}
	if gw := s.gateway(); gw != nil {
		wishes, err := parsePorts(req.Ports, m.hostIP(gw.NetworkID))
		if err == nil {
			s.Ports, err = m.ports.bind(s.ContainerID, wishes)
			err = external(err, s.Name, gw.EndpointID)
		}
		if err != nil {
			return s, err
		}
	}
	s.Resolver = m.wantsResolver(s)
	m.setSandbox(s.ContainerID, s)
	if err := m.boxesDir.put(s.ContainerID, s); err != nil {
		return s, err
	}
	if !host {
		if err := m.wire(ctx, s, req.Sysctls); err != nil {
			return s, err
		}
	}
	if err := m.writeFiles(s); err != nil {
		return s, err
	}
	return s, m.expose(s)
}

// external words an error of publishing as Docker does.
func external(err error, name, endpointID string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", name, endpointID, err)
}

// wire connects the namespace of s to its networks and opens its resolver.
func (m *Manager) wire(ctx context.Context, s *sandbox, sysctls map[string]string) error {
	return namespace.DoAt(s.NetNS, func(ns netns.NsHandle) error {
		gw := s.gateway()
		for _, ep := range wiring(s) {
			if err := m.attach(ctx, s, ep, ns, gw == ep); err != nil {
				return fmt.Errorf("network %s: %w", ep.NetworkName, err)
			}
		}
		if gw != nil && slices.ContainsFunc(s.Endpoints, func(ep endpoint) bool { return ep.Ingress }) {
			if err := untrackAsked(ns, gw.IfName, s.Ports); err != nil {
				return err
			}
		}
		for _, key := range sortedKeys(sysctls) {
			path := strings.ReplaceAll(key, ".", "/")
			if !strings.HasPrefix(path, "net/") || strings.Contains(path, "//") {
				continue // not of a network namespace: the runtime's business
			}
			if _, err := namespace.Set(path, sysctls[key]); err != nil {
				return cluster.Invalidf("sysctl %s: %v", key, err)
			}
		}
		if s.Resolver {
			return m.names.open(s.ContainerID, ns)
		}
		return nil
	})
}

// attach connects the sandbox in ns to one network.
func (m *Manager) attach(ctx context.Context, s *sandbox, ep *endpoint, ns netns.NsHandle, defaultRoute bool) error {
	switch ep.Kind {
	case driverOverlay:
		return m.attachSwarm(ctx, s, ep)
	case driverBridge:
		m.mu.Lock()
		r := m.networks[ep.NetworkID]
		m.mu.Unlock()
		return m.links.plug(r, ep, ns, defaultRoute)
	}
	return nil
}

// detach is attach undone; it is idempotent.
func (m *Manager) detach(ctx context.Context, s *sandbox, ep *endpoint) error {
	switch ep.Kind {
	case driverOverlay:
		return m.detachSwarm(ctx, s, ep)
	case driverBridge:
		return m.links.remove(ep.HostLink)
	}
	return nil
}

// expose sends packets for the published ports of s to it; hide stops that.
func (m *Manager) expose(s *sandbox) error {
	ports := s.targets()
	if err := m.fw.publish(ports); err != nil {
		return err
	}
	return m.links.forgetAsked(ports)
}

func (m *Manager) hide(s *sandbox) error {
	ports := s.targets()
	return errors.Join(m.fw.withdraw(ports), m.links.forgetLed(ports))
}

// targets are the published ports of s as the firewall knows them.
func (s *sandbox) targets() map[portKey]netip.AddrPort {
	gw := s.gateway()
	if gw == nil || len(s.Ports) == 0 {
		return nil
	}
	out := map[portKey]netip.AddrPort{}
	for _, b := range s.Ports {
		out[b.key()] = netip.AddrPortFrom(gw.Addr.Addr(), b.ContainerPort)
	}
	return out
}

// hostIP is where ports are published for a container in a network by default.
func (m *Manager) hostIP(networkID string) netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.networks[networkID]; r != nil && r.HostIP.IsValid() {
		return r.HostIP
	}
	return netip.IPv4Unspecified()
}

// Leave removes a container's sandbox and gives its addresses and ports back.
// It is idempotent.
func (m *Manager) Leave(ctx context.Context, containerID string) error {
	give, err := m.boxes.take(ctx, containerID)
	if err != nil {
		return err
	}
	defer give()
	s := m.sandbox(containerID)
	if s == nil {
		return nil
	}
	return m.dismantle(ctx, s)
}

// dismantle takes down whatever there is of s, and forgets it once nothing is
// left: what could not be removed is tried again by the next Leave or Adopt.
func (m *Manager) dismantle(ctx context.Context, s *sandbox) error {
	m.names.close(s.ContainerID)
	errs := make([]error, len(s.Endpoints)+1)
	var all sync.WaitGroup // each waits for the kernel more than it works
	all.Go(func() { errs[0] = m.hide(s) })
	for i := range s.Endpoints {
		all.Go(func() { errs[i+1] = m.detach(ctx, s, &s.Endpoints[i]) })
	}
	all.Wait()
	if s.NetNS != "" {
		errs = append(errs, namespace.Remove(s.NetNS))
	}
	errs = append(errs, m.ports.release(s.ContainerID, s.Ports))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sandbox of %s: %w", s.ContainerID, err)
	}
	if err := m.boxesDir.remove(s.ContainerID); err != nil {
		return err
	}
	m.setSandbox(s.ContainerID, nil)
	for i := range s.Endpoints {
		m.giveBack(ctx, s.Endpoints[i].Task)
	}
	return nil
}

// Rename gives a container another name.
func (m *Manager) Rename(ctx context.Context, containerID, name string) error {
	give, err := m.boxes.take(ctx, containerID)
	if err != nil {
		return err
	}
	defer give()
	old := m.sandbox(containerID)
	if old == nil {
		return nil
	}
	s := *old
	s.Name = name
	s.Endpoints = slices.Clone(old.Endpoints)
	for i := range s.Endpoints {
		if ep := &s.Endpoints[i]; len(ep.DNSNames) > 0 {
			ep.DNSNames = dnsNames(&s, ep.Aliases)
		}
	}
	if err := m.boxesDir.put(containerID, &s); err != nil {
		return err
	}
	m.setSandbox(containerID, &s)
	return nil
}
