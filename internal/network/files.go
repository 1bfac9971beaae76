package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
)

// The files below SandboxRequest.Dir that engine mounts into the container. They
// are changed in place: a mount follows the file, not its name.

const hostsHead = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// resolverAddr is where names are answered inside a sandbox.
var resolverAddr = netip.MustParseAddr("127.0.0.11")

// writeFiles writes hosts, hostname and resolv.conf.
func (m *Manager) writeFiles(s *sandbox) error {
	if s.Dir == "" {
		return nil
	}
	hosts, err := m.hosts(s)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.Dir, "hosts"), hosts, 0o644),
		os.WriteFile(filepath.Join(s.Dir, "hostname"), []byte(s.Hostname+"\n"), 0o644),
		os.WriteFile(filepath.Join(s.Dir, "resolv.conf"), m.resolvConf(s), 0o644))
}

// hosts returns the content of /etc/hosts.
func (m *Manager) hosts(s *sandbox) ([]byte, error) {
	b := bytes.NewBufferString(hostsHead)
	if s.NetNS == "" { // on the host's network: what the host knows
		if data, err := os.ReadFile("/etc/hosts"); err == nil {
			b = bytes.NewBuffer(data)
		}
	}
	for _, e := range s.ExtraHosts {
		name, addr, ok := strings.Cut(e, ":")
		if !ok {
			return nil, cluster.Invalidf("invalid extra host %q: name:address is expected", e)
		}
		if addr == "host-gateway" {
			gw, err := m.hostGateway()
			if err != nil {
				return nil, err
			}
			addr = gw.String()
		}
		fmt.Fprintf(b, "%s\t%s\n", strings.Trim(addr, "[]"), name)
	}
	b.WriteString(m.linkHosts(s))
	for i := range s.Endpoints {
		b.WriteString(hostsLine(s, &s.Endpoints[i]))
	}
	return b.Bytes(), nil
}

// hostsLine is what an endpoint adds to /etc/hosts.
func hostsLine(s *sandbox, ep *endpoint) string {
	if ep.Hidden || !ep.Addr.IsValid() || s.Hostname == "" {
		return ""
	}
	names := s.Hostname
	if short, _, ok := strings.Cut(s.Hostname, "."); ok {
		names += " " + short
	}
	return fmt.Sprintf("%s\t%s\n", ep.Addr.Addr(), names)
}

// changeHosts adds and removes lines of a running container's /etc/hosts, and
// leaves alone what others wrote there.
func changeHosts(s *sandbox, remove, add string) error {
	if s.Dir == "" {
		return nil
	}
	path := filepath.Join(s.Dir, "hosts")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := string(data)
	if remove != "" {
		if at := strings.LastIndex("\n"+text, "\n"+remove); at >= 0 {
			text = text[:at] + text[at+len(remove):]
		}
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return os.WriteFile(path, []byte(text+add), 0o644)
}

// hostGateway is the address under which containers find the host.
func (m *Manager) hostGateway() (netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.find(network.NetworkBridge)
	if err != nil {
		return netip.Addr{}, cluster.Invalidf("unable to derive the IP value for host-gateway")
	}
	return r.Gateway, nil
}

// linkHosts are the lines for links on the default bridge, which has no names.
func (m *Manager) linkHosts(s *sandbox) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		if len(ep.DNSNames) > 0 {
			continue // there the resolver knows them
		}
		for _, l := range ep.Links {
			ref, alias := cutLink(l)
			for _, other := range m.sandboxes {
				if to := other.in(ep.NetworkID); to != nil && other.is(ref) && to.Addr.IsValid() {
					fmt.Fprintf(&b, "%s\t%s %s %s\n", to.Addr.Addr(), alias, other.Hostname, other.Name)
				}
			}
		}
	}
	return b.String()
}

// cutLink reads a link: container:alias, or just the container.
func cutLink(l string) (ref, alias string) {
	ref, alias, ok := strings.Cut(l, ":")
	ref = strings.TrimPrefix(ref, "/")
	if !ok {
		alias = ref
	}
	return ref, alias[strings.LastIndex(alias, "/")+1:]
}

// is reports whether ref means this container.
func (s *sandbox) is(ref string) bool {
	return ref != "" && (s.Name == ref || len(ref) >= 12 && strings.HasPrefix(s.ContainerID, ref))
}

// resolvConf returns the content of /etc/resolv.conf.
func (m *Manager) resolvConf(s *sandbox) []byte {
	host := readResolvConf(m.cfg.ResolvConf)
	search := firstOf(s.DNSSearch, m.cfg.DNSSearch, host.search)
	options := slices.Clone(firstOf(s.DNSOptions, m.cfg.DNSOptions, host.options))
	servers := []netip.Addr{resolverAddr}
	switch {
	case s.Resolver:
		if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			options = append(options, "ndots:0")
		}
	case len(s.DNS) > 0:
		servers = s.DNS
	case len(m.cfg.ForwardDNS) > 0:
		servers = m.cfg.ForwardDNS
	default:
		servers = host.servers
	}
	if slices.Equal(search, []string{"."}) {
		search = nil
	}
	return resolvConf{servers, search, options}.text()
}

func firstOf(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// wantsResolver reports whether names are answered inside the sandbox: where
// containers have names, and where the host's own servers listen on its
// loopback, which nobody else reaches.
func (m *Manager) wantsResolver(s *sandbox) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := false
	for _, ep := range s.Endpoints {
		switch ep.Kind {
		case driverOverlay:
			return true
		case driverBridge:
			if r := m.networks[ep.NetworkID]; r != nil && r.named() {
				return true
			}
			out = true
		}
	}
	if !out || len(s.DNS) > 0 || len(m.cfg.ForwardDNS) > 0 {
		return false
	}
	return slices.ContainsFunc(readResolvConf(m.cfg.ResolvConf).servers, netip.Addr.IsLoopback)
}

// resolvConf is what /etc/resolv.conf says.
type resolvConf struct {
	servers []netip.Addr
	search  []string
	options []string
}

func (c resolvConf) text() []byte {
	var b bytes.Buffer
	for _, a := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	return b.Bytes()
}

// readResolvConf reads a resolv.conf(5). A file that cannot be read names no servers.
func readResolvConf(path string) resolvConf {
	data, err := os.ReadFile(path)
	if err != nil {
		return resolvConf{}
	}
	return parseResolvConf(data)
}

func parseResolvConf(data []byte) resolvConf {
	var c resolvConf
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.servers = append(c.servers, a)
			}
		case "search", "domain":
			c.search = f[1:]
		case "options":
			c.options = append(c.options, f[1:]...)
		}
	}
	return c
}
