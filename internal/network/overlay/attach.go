package overlay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// AttachRequest is a task's or container's wish for its place in a network.
type AttachRequest struct {
	NetworkID string
	ID        string // of the task or container
	Addr      netip.Addr
	NetNS     string // path of the container's network namespace
	IfName    string // what the interface is to be called in it
	// Gateway is the container's interface on the gateway bridge, which must be
	// there already; nil if it has none. On the ingress network the container's
	// default route is made to go by it.
	Gateway *GatewayInfo
}

// GatewayInfo is a container's interface on its host's gateway bridge.
type GatewayInfo struct {
	IfName string
	Addr   netip.Addr // the container's own
	Via    netip.Addr // the bridge's
}

// attachment is a container's place in one network.
type attachment struct {
	network, id string
	addr        netip.Addr
	ifName      string
	gateway     *GatewayInfo
	adopted     bool // an earlier process made it
}

// The ingress network's answers go by a routing table of their own.
const (
	ingressTable    = 101
	ingressPriority = 100
)

// ntfSticky keeps an entry of a bridge at its link; x/sys lacks it.
const ntfSticky = 1 << 6

// vethName is the host's end of a container's place in a network.
func vethName(networkID, id string) string {
	sum := sha256.Sum256([]byte(networkID + "/" + id))
	return fmt.Sprintf("skv%x", sum[:5])
}

// Attach gives a container its place in a network; one that it has already, from
// this process or an earlier one, is left as it is. When it returns, the
// services of the network can be reached from there. Kind of error: NotFound if
// this node has no part in the network.
func (o *Overlay) Attach(ctx context.Context, req AttachRequest) error {
	if !req.Addr.Is4() {
		return cluster.Invalidf("address %s: an overlay network needs an IPv4 address", req.Addr)
	}
	if req.IfName == "" || len(req.IfName) >= unix.IFNAMSIZ {
		return cluster.Invalidf("interface name %q is not usable", req.IfName)
	}
	ns, id, err := namespace.Open(req.NetNS)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", req.NetNS, err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	there, err := attached(inside, req)
	if err != nil {
		return err
	}
	v := o.view(req.NetworkID)
	if !there {
		if v == nil {
			return cluster.NotFoundf("network %s not found", req.NetworkID)
		}
		if err := o.plug(v, ns, inside, req); err != nil {
			return err
		}
	}
	if v != nil && v.net.Ingress {
		if err := routeIngress(ns, inside, v, req.IfName, req.Addr, req.Gateway); err != nil {
			return fmt.Errorf("network %s: %w", v.net.Name, err)
		}
	}
	return o.syncSandbox(ctx, o.register(req, id, !there))
}

// attached says whether the container has its interface already.
func attached(inside *netlink.Handle, req AttachRequest) (bool, error) {
	l, err := inside.LinkByName(req.IfName)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if l.Attrs().HardwareAddr.String() != hardware(req.Addr).String() {
		return false, cluster.Conflictf("interface %s of %s belongs to something else", req.IfName, req.ID)
	}
	addrs, err := inside.AddrList(l, unix.AF_INET)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if a.IP.Equal(req.Addr.AsSlice()) {
			return true, nil
		}
	}
	// It is ours but was not finished.
	return false, inside.LinkDel(l)
}

// plug makes the pair of interfaces: one in the container, one on the bridge.
func (o *Overlay) plug(v *view, ns netns.NsHandle, inside *netlink.Handle, req AttachRequest) error {
	o.mu.Lock()
	d := o.devices[v.net.ID]
	o.mu.Unlock()
	if err := buildable(v); err != nil {
		return err
	}
	if d == nil {
		return cluster.Unavailablef("network %s is not ready on this node", v.net.Name)
	}
	o.mu.Lock()
	mtu := d.mtu
	o.mu.Unlock()
	name := vethName(req.NetworkID, req.ID)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = name, mtu, d.bridge
	attrs.Flags = net.FlagUp
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: req.IfName, PeerHardwareAddr: hardware(req.Addr),
		PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(mtu), PeerTxQLen: -1,
	}
	err := o.nl.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) { // left by a container of this id that ended badly
		if err = o.deleteLinks(name); err == nil {
			err = o.nl.LinkAdd(pair)
		}
	}
	if err != nil {
		return fmt.Errorf("network %s: interface %s: %w", v.net.Name, req.IfName, err)
	}
	err = o.pin(pair.Attrs().Index, req.Addr)
	if err == nil {
		err = configure(inside, req, v.net.Subnet.Bits())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("network %s: interface %s: %w", v.net.Name, req.IfName, err), o.deleteLinks(name))
	}
	return nil
}

// pin ties an address' MAC to the link its holder is behind. A bridge that
// learns would believe whoever sends under it: a host that left the swarm, or
// was given up while it was cut off, may still run the address' last holder.
func (o *Overlay) pin(link int, a netip.Addr) error {
	return o.nl.NeighSet(&netlink.Neigh{
		LinkIndex: link, Family: unix.AF_BRIDGE, HardwareAddr: hardware(a),
		State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER | ntfSticky,
	})
}

func configure(inside *netlink.Handle, req AttachRequest, bits int) error {
	l, err := inside.LinkByName(req.IfName)
	if err != nil {
		return err
	}
	if err := inside.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(req.Addr, bits))}); err != nil {
		return err
	}
	return inside.LinkSetUp(l)
}

// routeIngress lets the answers of a task on the ingress network go back the
// way their question came: what carries a mark goes out there, to whichever MAC
// the rules write. The rest goes by the gateway, from the ingress address, which
// is what a UDP socket without an address of its own must answer from.
func routeIngress(ns netns.NsHandle, inside *netlink.Handle, v *view, ifName string, addr netip.Addr, g *GatewayInfo) error {
	l, err := inside.LinkByName(ifName)
	if err != nil {
		return err
	}
	gw := v.net.Gateway
	if !gw.Is4() {
		gw = v.net.Subnet.Masked().Addr().Next()
	}
	index := l.Attrs().Index
	if err := inside.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: hardware(gw),
	}); err != nil {
		return err
	}
	if err := inside.RouteReplace(&netlink.Route{
		LinkIndex: index, Table: ingressTable, Gw: gw.AsSlice(), Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
	}); err != nil {
		return err
	}
	if err := inside.RuleAdd(ingressRule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if g != nil {
		out, err := inside.LinkByName(g.IfName)
		if err != nil {
			return fmt.Errorf("gateway interface %s: %w", g.IfName, err)
		}
		// The size of an answer's packets is settled by this route, before its
		// mark sends it the other way: without the overlay's MTU here, large
		// ones would depend on ICMP errors that firewalls like to drop.
		if err := inside.RouteReplace(&netlink.Route{
			LinkIndex: out.Attrs().Index, Gw: g.Via.AsSlice(), Src: addr.AsSlice(), MTU: l.Attrs().MTU,
			Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
		}); err != nil {
			return fmt.Errorf("default route by %s: %w", g.Via, err)
		}
	}
	// A client's address has its route elsewhere; 1 would drop it.
	_, err = namespace.SetAll(ns, map[string]string{"net/ipv4/conf/" + ifName + "/rp_filter": "2"})
	return err
}

// ingressRule is "not fwmark 0 lookup 101".
func ingressRule() *netlink.Rule {
	r := netlink.NewRule()
	all := ^uint32(0)
	r.Family, r.Priority, r.Table = unix.AF_INET, ingressPriority, ingressTable
	r.Mark, r.Mask, r.Invert = 0, &all, true
	return r
}

// register enters the attachment, before its rules are derived, so that a
// change in between reaches it either way.
func (o *Overlay) register(req AttachRequest, id namespace.ID, fresh bool) *sandbox {
	o.mu.Lock()
	defer o.mu.Unlock()
	sb := o.sandboxes[req.NetNS]
	if sb == nil || sb.id != id {
		sb = &sandbox{path: req.NetNS, id: id, turn: make(chan struct{}, 1), att: map[string]*attachment{}}
		o.sandboxes[req.NetNS] = sb
	}
	sb.att[req.NetworkID] = &attachment{
		network: req.NetworkID, id: req.ID, addr: req.Addr, ifName: req.IfName, gateway: req.Gateway, adopted: !fresh,
	}
	return sb
}

// Detach takes a container out of a network. It is idempotent, and content with
// a namespace that has ended.
func (o *Overlay) Detach(ctx context.Context, networkID, id string) error {
	o.mu.Lock()
	var sb *sandbox
	var was *attachment
	for _, s := range o.sandboxes {
		if a := s.att[networkID]; a != nil && a.id == id {
			sb, was = s, a
			delete(s.att, networkID)
		}
	}
	o.mu.Unlock()
	if err := o.deleteLinks(vethName(networkID, id)); err != nil {
		return err
	}
	if sb == nil {
		return nil
	}
	if err := unrouteIngress(sb, was); err != nil {
		return err
	}
	if err := o.clearSandbox(ctx, sb); err != nil {
		return err
	}
	return o.syncSandbox(ctx, sb)
}

// Release forgets a container whose namespace is about to be removed, in all its
// networks at once. Its interfaces and rules go with the namespace; undoing them
// one by one as Detach does would take the kernel some 10 ms each.
func (o *Overlay) Release(ctx context.Context, id string) error {
	o.mu.Lock()
	var mine []*sandbox
	for _, sb := range o.sandboxes {
		for network, a := range sb.att {
			if a.id == id {
				delete(sb.att, network)
				mine = append(mine, sb)
			}
		}
	}
	o.mu.Unlock()
	for _, sb := range mine {
		select {
		case sb.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		o.mu.Lock()
		used := len(sb.att) > 0
		o.mu.Unlock()
		if !used {
			sb.hangUp()
			o.forgetSandbox(sb)
		}
		<-sb.turn
	}
	return nil
}

// unrouteIngress removes what routeIngress left that did not go with the
// interface.
func unrouteIngress(sb *sandbox, a *attachment) error {
	ns, id, err := namespace.Open(sb.path)
	defer namespace.Close(ns)
	if err != nil || id != sb.id {
		return ignoreMissing(err)
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	if _, err := inside.LinkByName(a.ifName); err == nil {
		return nil // another network's now
	}
	rules, err := inside.RuleList(unix.AF_INET)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Table == ingressTable && r.Priority == ingressPriority {
			routes, err := inside.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: ingressTable}, netlink.RT_FILTER_TABLE)
			if err != nil || len(routes) > 0 {
				return err
			}
			return ignoreMissing(inside.RuleDel(ingressRule()))
		}
	}
	return nil
}

// setSandboxMTU changes the MTU of both ends of a container's interface.
func (o *Overlay) setSandboxMTU(sb *sandbox, networkID string, mtu int) error {
	o.mu.Lock()
	a := sb.att[networkID]
	o.mu.Unlock()
	if a == nil {
		return nil
	}
	if l, err := o.nl.LinkByName(vethName(networkID, a.id)); err == nil {
		if err := o.nl.LinkSetMTU(l, mtu); err != nil {
			return err
		}
	}
	ns, id, err := namespace.Open(sb.path)
	defer namespace.Close(ns)
	if err != nil || id != sb.id {
		return ignoreMissing(err)
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := inside.LinkByName(a.ifName)
	if err != nil {
		return ignoreMissing(err)
	}
	if err := inside.LinkSetMTU(l, mtu); err != nil {
		return err
	}
	if v := o.view(networkID); v != nil && v.net.Ingress {
		return routeIngress(ns, inside, v, a.ifName, a.addr, a.gateway)
	}
	return nil
}

// replug puts the containers of a network on its bridge, if that was made anew,
// and gives them its MTU, if that is another.
func (o *Overlay) replug(networkID string, br netlink.Link, mtu int) error {
	for _, sb := range o.sandboxesOf(map[string]bool{networkID: true}) {
		o.mu.Lock()
		a := sb.att[networkID]
		o.mu.Unlock()
		if a == nil {
			continue
		}
		l, err := o.nl.LinkByName(vethName(networkID, a.id))
		if err != nil {
			continue // its namespace has ended
		}
		if l.Attrs().MasterIndex != br.Attrs().Index {
			err := o.nl.LinkSetMaster(l, br)
			if err == nil {
				err = o.pin(l.Attrs().Index, a.addr)
			}
			if err != nil {
				return err
			}
		}
		if l.Attrs().MTU != mtu {
			if err := o.setSandboxMTU(sb, networkID, mtu); err != nil {
				return err
			}
		}
	}
	return nil
}
