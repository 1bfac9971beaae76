package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

const (
	maxIfName  = 15
	vethPrefix = "veth"
)

// links works on the interfaces of the daemon's own network namespace.
type links struct {
	ns      netns.NsHandle
	h       *netlink.Handle
	bulk    *nl.SocketHandle
	removal *gather[string]
}

func newLinks(ns netns.NsHandle) (*links, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	bulk, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, err
	}
	l := &links{ns: ns, h: h, bulk: &nl.SocketHandle{Socket: bulk}}
	l.removal = newGather(l.removeAll)
	return l, nil
}

// routed returns the subnets the host has addresses in or routes to, the default
// route aside.
func (l *links) routed() ([]netip.Prefix, error) {
	var out []netip.Prefix
	routes, err := l.h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if p := toPrefix(r.Dst); p.Bits() > 0 {
			out = append(out, p)
		}
	}
	addrs, err := l.h.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		out = append(out, toPrefix(a.IPNet))
	}
	return out, nil
}

// addresses returns the host's own IPv4 addresses.
func (l *links) addresses() (map[netip.Addr]bool, error) {
	addrs, err := l.h.AddrList(nil, unix.AF_INET)
	out := map[netip.Addr]bool{}
	for _, a := range addrs {
		out[toPrefix(a.IPNet).Addr()] = true
	}
	return out, err
}

// towards returns the address the host speaks to another one from.
func (l *links) towards(to netip.Addr) (netip.Addr, error) {
	routes, err := l.h.RouteGet(to.AsSlice())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %s: %w", to, err)
	}
	if len(routes) == 0 {
		return netip.Addr{}, nil
	}
	src, _ := netip.AddrFromSlice(routes[0].Src)
	return src.Unmap(), nil
}

// existing returns the first IPv4 address of an interface, with its subnet's
// length, and whether there is such an interface at all.
func (l *links) existing(name string) (addr netip.Prefix, there bool, err error) {
	link, err := l.h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return addr, false, nil
	}
	if err != nil {
		return addr, false, err
	}
	addrs, err := l.h.AddrList(link, unix.AF_INET)
	if err != nil || len(addrs) == 0 {
		return addr, true, err
	}
	return toPrefix(addrs[0].IPNet), true, nil
}

// bridge makes the interface of a network, or brings the one that is there into
// the wanted shape. It reports whether it was there before.
func (l *links) bridge(r *netRecord) (existed bool, err error) {
	link, err := l.h.LinkByName(r.Link)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = r.Link
		attrs.MTU = r.MTU
		if r.Gateway.IsValid() {
			// A bridge without a MAC of its own takes its lowest port's, and
			// changes it whenever a container comes or goes.
			mac := cluster.MAC(r.Gateway)
			attrs.HardwareAddr = mac[:]
		}
		link = &netlink.Bridge{LinkAttrs: attrs}
		err = l.h.LinkAdd(link)
	} else if err == nil {
		existed = true
		if link.Type() != "bridge" {
			return true, cluster.Invalidf("interface %s is there already and is no bridge", r.Link)
		}
	}
	if err != nil {
		return existed, fmt.Errorf("bridge %s: %w", r.Link, err)
	}
	if err := l.dressBridge(link, r); err != nil {
		return existed, fmt.Errorf("bridge %s: %w", r.Link, err)
	}
	return existed, nil
}

func (l *links) dressBridge(link netlink.Link, r *netRecord) error {
	if r.Gateway.IsValid() {
		addr := &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(r.Gateway, r.Subnet.Bits()))}
		if err := l.h.AddrReplace(link, addr); err != nil {
			return err
		}
	}
	_, err := namespace.SetAll(l.ns, map[string]string{
		// So that 127.0.0.1:PORT reaches a container; the raw chain keeps
		// such packets of others out.
		"net/ipv4/conf/" + sysctlName(r.Link) + "/route_localnet": "1",
		"net/ipv6/conf/" + sysctlName(r.Link) + "/disable_ipv6":   "1",
	})
	if err != nil {
		return err
	}
	return l.h.LinkSetUp(link)
}

// sysctlName is an interface's name as a path element below /proc/sys.
func sysctlName(ifname string) string { return strings.ReplaceAll(ifname, "/", ".") }

// remove deletes an interface; one that is not there is no error.
func (l *links) remove(name string) error { return l.removal.add(name) }

// leavingGroup marks interfaces that are deleted together.
const leavingGroup = 0x736b6570

// removeAll deletes interfaces. The kernel waits as long for many as for one,
// and nobody else can change an interface meanwhile: so it is done in one go.
func (l *links) removeAll(names []string) error {
	if len(names) == 1 {
		return l.removeOne(names[0])
	}
	for _, name := range names {
		link, err := l.h.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil {
			err = l.h.LinkSetGroup(link, leavingGroup)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: l.bulk}
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(leavingGroup)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (l *links) removeOne(name string) error {
	link, err := l.h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = l.h.LinkDel(link)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// sweep deletes the veths in the given bridges that are not to be kept: what a
// crash left behind.
func (l *links) sweep(bridges, keep map[string]bool) error {
	all, err := l.h.LinkList()
	if err != nil {
		return err
	}
	ours := map[int]bool{}
	for _, link := range all {
		if bridges[link.Attrs().Name] {
			ours[link.Attrs().Index] = true
		}
	}
	var errs []error
	for _, link := range all {
		a := link.Attrs()
		if link.Type() == "veth" && ours[a.MasterIndex] && !keep[a.Name] {
			errs = append(errs, l.h.LinkDel(link))
		}
	}
	return errors.Join(errs...)
}

// plug connects the sandbox in ns to a bridge as ep says: a veth pair, its
// address inside, and the default route if it is to carry it.
func (l *links) plug(r *netRecord, ep *endpoint, ns netns.NsHandle, defaultRoute bool) error {
	master, err := l.h.LinkByName(r.Link)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", r.Link, err)
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return cluster.Invalidf("invalid MAC address: %s", ep.MAC)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ep.HostLink
	attrs.MTU = r.MTU
	attrs.MasterIndex = master.Attrs().Index
	attrs.Flags = net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName = ep.IfName
	veth.PeerHardwareAddr = mac
	veth.PeerNamespace = netlink.NsFd(ns)
	if err := l.h.LinkAdd(veth); err != nil {
		return fmt.Errorf("interface %s: %w", ep.HostLink, err)
	}
	if !r.ICC {
		// Bridged frames pass no IP hook: the bridge itself keeps them apart.
		if err := l.h.LinkSetIsolated(veth, true); err != nil {
			return fmt.Errorf("interface %s: %w", ep.HostLink, err)
		}
	}
	if err := dressPeer(ns, ep, defaultRoute); err != nil {
		return err
	}
	return l.carrier(veth.Attrs().Index, master.Attrs().Index)
}

// carrier waits until a bridge and a port that was just plugged into it pass
// packets: the kernel sees to that a moment after both ends are up, and loses
// what comes before.
func (l *links) carrier(indices ...int) error {
	end := time.Now().Add(time.Second)
	for _, i := range indices {
		for ; time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
			link, err := l.h.LinkByIndex(i)
			if err != nil {
				return err
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
		}
	}
	return nil
}

func dressPeer(ns netns.NsHandle, ep *endpoint, defaultRoute bool) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	peer, err := h.LinkByName(ep.IfName)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(peer, &netlink.Addr{IPNet: toIPNet(ep.Addr)}); err != nil {
		return fmt.Errorf("%s: %w", ep.IfName, err)
	}
	if err := h.LinkSetUp(peer); err != nil {
		return fmt.Errorf("%s: %w", ep.IfName, err)
	}
	if defaultRoute {
		return setDefault(h, peer, ep.Gateway)
	}
	return nil
}

// setDefault points the default route of a sandbox at gw.
func setDefault(h *netlink.Handle, out netlink.Link, gw netip.Addr) error {
	return h.RouteReplace(&netlink.Route{
		LinkIndex: out.Attrs().Index, Gw: gw.AsSlice(),
		Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)},
	})
}

// routeVia points the default route of the sandbox in ns at ep.
func routeVia(ns netns.NsHandle, ep *endpoint) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(ep.IfName)
	if err != nil {
		return err
	}
	return setDefault(h, link, ep.Gateway)
}

// prepareHost lets the daemon's namespace forward, and keeps bridged frames off
// the IP hooks.
func (l *links) prepareHost() error {
	_, err := namespace.SetAll(l.ns, map[string]string{
		"net/ipv4/ip_forward":                 "1",
		"net/bridge/bridge-nf-call-iptables":  "0",
		"net/bridge/bridge-nf-call-ip6tables": "0",
		"net/bridge/bridge-nf-call-arptables": "0",
	})
	return err
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
