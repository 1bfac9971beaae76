package swarm

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
)

// DefaultPort is the cluster port.
const DefaultPort = 2377

// Interface is a host's network interface, as far as addresses are chosen by it.
type Interface struct {
	Name     string
	Up       bool
	Loopback bool
	Addrs    []netip.Addr
}

// Host is what the choice of addresses asks of the machine.
type Host interface {
	Interfaces() ([]Interface, error)
	// IsLocal reports whether the address is one of the machine's.
	IsLocal(netip.Addr) bool
}

// thisHost is the machine (network namespace) this process is in.
type thisHost struct{}

func (thisHost) Interfaces() ([]Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("network interfaces: %w", err)
	}
	var out []Interface
	for _, i := range all {
		x := Interface{Name: i.Name, Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				x.Addrs = append(x.Addrs, p.Addr().Unmap())
			}
		}
		out = append(out, x)
	}
	return out, nil
}

func (thisHost) IsLocal(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Docker's words.
var (
	errBadListen    = cluster.Invalidf("listen address must be an IP address or network interface (with optional port number)")
	errBadAdvertise = cluster.Invalidf("advertise address must be a non-zero IP address or network interface (with optional port number)")
	errBadDataPath  = cluster.Invalidf("data path address must be a non-zero IP address or network interface (without a port number)")
	errNoIP         = cluster.Invalidf("could not find the system's IP address")
)

// addresses are where a node listens and is reached.
type addresses struct {
	Listen    netip.AddrPort // address may be unspecified
	Advertise netip.AddrPort
	Data      netip.Addr
}

// chooser chooses addresses from what the user said.
type chooser struct {
	host Host
	// advertise is the daemon's --swarm-default-advertise-addr.
	advertise string
}

// split parts HOST[:PORT]; port is 0 when there is none, an error when it is
// none that exists.
func split(s string, bad error) (host string, port uint16, err error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, 0, nil // an address alone, maybe with colons
	}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Contains(s, ":") {
			return "", 0, bad
		}
		return s, 0, nil
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 {
		return "", 0, bad
	}
	return host, uint16(n), nil
}

// listen returns where to listen. An empty wish is every address.
func (c chooser) listen(want string) (netip.AddrPort, error) {
	if want == "" {
		want = "0.0.0.0"
	}
	host, port, err := split(want, errBadListen)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if port == 0 {
		port = DefaultPort
	}
	a, found, err := c.byInterface(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if !found {
		if a, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, errBadListen
		}
		if a = a.Unmap(); !a.IsUnspecified() && !c.host.IsLocal(a) {
			return netip.AddrPort{}, cluster.Invalidf("listen address %s is not an address of this host", a)
		}
	}
	return netip.AddrPortFrom(a, port), nil
}

// choose returns all addresses. detected is the address that a connection to a
// manager comes from, zero when there is none: it is advertised when the user
// named none.
func (c chooser) choose(listen, advertise, data string, detected netip.Addr) (addresses, error) {
	var out addresses
	var err error
	if out.Listen, err = c.listen(listen); err != nil {
		return out, err
	}
	if out.Advertise, err = c.advertised(advertise, out.Listen, detected); err != nil {
		return out, err
	}
	if out.Listen.Addr() == netip.IPv4Unspecified() && out.Advertise.Addr().Is6() {
		out.Listen = netip.AddrPortFrom(netip.IPv6Unspecified(), out.Listen.Port()) // which is both
	}
	out.Data = out.Advertise.Addr()
	if data != "" {
		out.Data, err = c.named(data, "data path", errBadDataPath)
	}
	return out, err
}

func (c chooser) advertised(want string, listen netip.AddrPort, detected netip.Addr) (netip.AddrPort, error) {
	port := listen.Port()
	switch {
	case want != "":
		host, p, err := split(want, errBadAdvertise)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if p != 0 {
			port = p
		}
		a, err := c.named(host, "advertise", errBadAdvertise)
		return netip.AddrPortFrom(a, port), err
	case c.advertise != "":
		a, err := c.named(c.advertise, "default advertise",
			cluster.Invalidf("default advertise address must be a non-zero IP address or network interface (without a port number)"))
		return netip.AddrPortFrom(a, port), err
	case !listen.Addr().IsUnspecified():
		return listen, nil
	case detected.IsValid():
		return netip.AddrPortFrom(detected, port), nil
	}
	a, err := c.system()
	return netip.AddrPortFrom(a, port), err
}

// named returns the address of an interface, or the one that was written out.
func (c chooser) named(s, what string, bad error) (netip.Addr, error) {
	a, found, err := c.byInterface(s)
	if err != nil || found {
		return a, err
	}
	a, err = netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, bad
	}
	if a = a.Unmap(); !c.host.IsLocal(a) {
		return netip.Addr{}, cluster.Invalidf("%s address %s is not an address of this host", what, a)
	}
	return a, nil
}

// byInterface returns the one address of an interface, IPv4 first.
func (c chooser) byInterface(name string) (netip.Addr, bool, error) {
	all, err := c.host.Interfaces()
	if err != nil {
		return netip.Addr{}, false, err
	}
	for _, i := range all {
		if i.Name != name {
			continue
		}
		v4, v6 := families(i.Addrs)
		for _, f := range []struct {
			name  string
			addrs []netip.Addr
		}{{"IPv4", v4}, {"IPv6", v6}} {
			switch {
			case len(f.addrs) > 1:
				return netip.Addr{}, false, cluster.Invalidf("interface %s has more than one %s address (%s and %s)", name, f.name, f.addrs[0], f.addrs[1])
			case len(f.addrs) == 1:
				return f.addrs[0], true, nil
			}
		}
		return netip.Addr{}, false, cluster.Invalidf("interface %s has no usable IPv4 or IPv6 address", name)
	}
	return netip.Addr{}, false, nil
}

func families(addrs []netip.Addr) (v4, v6 []netip.Addr) {
	for _, a := range addrs {
		switch {
		case a.Is4():
			v4 = append(v4, a)
		case !a.IsLinkLocalUnicast():
			v6 = append(v6, a)
		}
	}
	return v4, v6
}

// system returns the machine's one address, if it has one only.
func (c chooser) system() (netip.Addr, error) {
	all, err := c.host.Interfaces()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, v := range []func(Interface) []netip.Addr{
		func(i Interface) []netip.Addr { v4, _ := families(i.Addrs); return v4 },
		func(i Interface) []netip.Addr { _, v6 := families(i.Addrs); return v6 },
	} {
		a, err := onlyOne(all, v)
		if err != nil || a.IsValid() {
			return a, err
		}
	}
	return netip.Addr{}, errNoIP
}

func onlyOne(all []Interface, of func(Interface) []netip.Addr) (netip.Addr, error) {
	var found netip.Addr
	var on string
	for _, i := range all {
		addrs := of(i)
		if !i.Up || i.Loopback || ours(i.Name) || len(addrs) == 0 {
			continue
		}
		if len(addrs) > 1 {
			return netip.Addr{}, cluster.Invalidf("could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s and %s)", i.Name, addrs[0], addrs[1])
		}
		if found.IsValid() {
			return netip.Addr{}, cluster.Invalidf("could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s)", found, on, addrs[0], i.Name)
		}
		found, on = addrs[0], i.Name
	}
	return found, nil
}

// ours reports whether an interface belongs to containers rather than to the
// machine.
func ours(name string) bool {
	for _, p := range []string{"docker", "br-", "veth", "skep", "sk-", "skx-", "skv"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
