package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// vxlanOverhead is what VXLAN over IPv4 adds to a packet: the outer Ethernet's
// share of 14, IP 20, UDP 8 and VXLAN 8.
const vxlanOverhead = 50

// aliasPrefix marks links as ours; the network's id follows.
const aliasPrefix = "skep overlay "

// device is a network's bridge and VXLAN device on this host.
type device struct {
	vni           uint32
	bridge, vxlan int // link indices
	mtu           int
	// remote is what the kernel has, by address in the network; nil: not looked
	// yet. It belongs to the holder of Overlay.turn.
	remote map[netip.Addr]netip.Addr
}

func bridgeName(vni uint32) string { return fmt.Sprintf("sk-%06x", vni) }
func vxlanName(vni uint32) string  { return fmt.Sprintf("skx-%06x", vni) }

func hardware(a netip.Addr) net.HardwareAddr {
	mac := cluster.MAC(a)
	return mac[:]
}

// ensureDevice brings a network's devices, their addresses and the entries for
// remote holders of addresses to the view; entries nobody needs stay for now.
func (o *Overlay) ensureDevice(v *view) error {
	if err := buildable(v); err != nil {
		// The rest of the node's networks need not wait for it; whoever wants
		// a place in it is told.
		o.log.Error("network is not built on this node", "network", v.net.ID, "err", err)
		return nil
	}
	if !v.self.Is4() {
		return cluster.Unavailablef("network %s: this node's data path address is not known (IPv4 is needed)", v.net.Name)
	}
	o.mu.Lock()
	d := o.devices[v.net.ID]
	o.mu.Unlock()
	mtu, err := o.mtu(v)
	if err != nil {
		return fmt.Errorf("network %s: %w", v.net.Name, err)
	}
	if d != nil && d.vni != v.net.VNI {
		if err := o.dropDevice(v.net.ID); err != nil {
			return err
		}
		d = nil
	}
	if d == nil || o.sweep {
		if d, err = o.makeDevice(v, mtu); err != nil {
			return fmt.Errorf("network %s: %w", v.net.Name, err)
		}
		o.mu.Lock()
		o.devices[v.net.ID] = d
		o.mu.Unlock()
	} else if d.mtu != mtu {
		if err := o.setMTU(v.net.ID, d, mtu); err != nil {
			return fmt.Errorf("network %s: %w", v.net.Name, err)
		}
	}
	return o.addRemotes(v, d)
}

// buildable says why a network cannot be built at all, whatever comes.
func buildable(v *view) error {
	switch {
	case v.net.Encrypted:
		return cluster.NotImplementedf("network %s: encrypted overlay networks are not built yet", v.net.Name)
	case v.net.VNI == 0 || v.net.VNI >= 1<<24:
		return cluster.Invalidf("network %s: VXLAN id %d is out of range", v.net.Name, v.net.VNI)
	case !v.net.Subnet.Addr().Is4():
		return cluster.Invalidf("network %s: subnet %s is not IPv4", v.net.Name, v.net.Subnet)
	case v.net.NodeAddr.IsValid() && !v.net.Subnet.Contains(v.net.NodeAddr):
		return cluster.Invalidf("network %s: address %s is not of its subnet %s", v.net.Name, v.net.NodeAddr, v.net.Subnet)
	}
	return nil
}

func (o *Overlay) makeDevice(v *view, mtu int) (*device, error) {
	br, err := o.ensureBridge(v, mtu)
	if err != nil {
		return nil, err
	}
	vx, err := o.ensureVXLAN(v, br, mtu)
	if err != nil {
		return nil, err
	}
	set := map[string]string{
		"net/bridge/bridge-nf-call-iptables":  "0",
		"net/bridge/bridge-nf-call-ip6tables": "0",
		"net/bridge/bridge-nf-call-arptables": "0",
	}
	for _, l := range []netlink.Link{br, vx} {
		set["net/ipv6/conf/"+l.Attrs().Name+"/disable_ipv6"] = "1"
	}
	if v.net.Ingress {
		set["net/ipv4/ip_forward"] = "1"
		set["net/ipv4/conf/"+br.Attrs().Name+"/route_localnet"] = "1"
	}
	changed, err := namespace.SetAll(o.ns, set)
	if err != nil {
		return nil, err
	}
	for _, key := range changed {
		if !strings.Contains(key, "/conf/") { // the host's, not our links'
			o.log.Info("host setting changed for the overlay", "key", key, "value", set[key])
		}
	}
	for _, l := range []netlink.Link{br, vx} {
		if l.Attrs().Flags&net.FlagUp == 0 {
			if err := o.nl.LinkSetUp(l); err != nil {
				return nil, err
			}
		}
	}
	if v.net.Ingress && v.net.NodeAddr.IsValid() {
		if err := o.setBridgeAddr(br, netip.PrefixFrom(v.net.NodeAddr, v.net.Subnet.Bits())); err != nil {
			return nil, err
		}
	}
	if err := o.replug(v.net.ID, br, mtu); err != nil {
		return nil, err
	}
	return &device{vni: v.net.VNI, bridge: br.Attrs().Index, vxlan: vx.Attrs().Index, mtu: mtu}, nil
}

// ensureBridge finds or makes the bridge. The ingress network's carries the
// node's own address there, and the MAC that goes with it.
func (o *Overlay) ensureBridge(v *view, mtu int) (netlink.Link, error) {
	name := bridgeName(v.net.VNI)
	// Without a fixed address a bridge takes its lowest port's, which changes.
	mac := hardware(v.net.Subnet.Masked().Addr())
	if v.net.NodeAddr.IsValid() {
		mac = hardware(v.net.NodeAddr)
	}
	l, err := o.nl.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		off := false
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, mac
		if err := o.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
			return nil, err
		}
		if l, err = o.nl.LinkByName(name); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if l.Attrs().HardwareAddr.String() != mac.String() {
		if err := o.nl.LinkSetHardwareAddr(l, mac); err != nil {
			return nil, err
		}
	}
	return l, o.settle(l, v.net.ID, mtu)
}

// ensureVXLAN finds or makes the VXLAN device; one that differs in what cannot
// be changed is made again.
func (o *Overlay) ensureVXLAN(v *view, br netlink.Link, mtu int) (netlink.Link, error) {
	name := vxlanName(v.net.VNI)
	port := int(v.net.Port)
	if port == 0 {
		port = cluster.DefaultDataPort
	}
	l, err := o.nl.LinkByName(name)
	if err == nil {
		have, ok := l.(*netlink.Vxlan)
		if ok && have.VxlanId == int(v.net.VNI) && have.Port == port && have.Proxy && !have.Learning &&
			have.SrcAddr.Equal(v.self.AsSlice()) {
			if have.MasterIndex != br.Attrs().Index {
				if err := o.nl.LinkSetMaster(l, br); err != nil {
					return nil, err
				}
			}
			return l, o.settle(l, v.net.ID, mtu)
		}
		if err := o.nl.LinkDel(l); err != nil {
			return nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = name, mtu, br.Attrs().Index
	err = o.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(v.net.VNI), SrcAddr: v.self.AsSlice(), Port: port, Proxy: true,
	})
	if err != nil {
		return nil, fmt.Errorf("VXLAN %d on UDP port %d: %w", v.net.VNI, port, err)
	}
	if l, err = o.nl.LinkByName(name); err != nil {
		return nil, err
	}
	return l, o.settle(l, v.net.ID, mtu)
}

// settle gives a link its mark and MTU.
func (o *Overlay) settle(l netlink.Link, networkID string, mtu int) error {
	if l.Attrs().Alias != aliasPrefix+networkID {
		if err := o.nl.LinkSetAlias(l, aliasPrefix+networkID); err != nil {
			return err
		}
	}
	if l.Attrs().MTU != mtu {
		return o.nl.LinkSetMTU(l, mtu)
	}
	return nil
}

// setBridgeAddr makes p the bridge's only IPv4 address.
func (o *Overlay) setBridgeAddr(br netlink.Link, p netip.Prefix) error {
	want := &netlink.Addr{IPNet: ipNet(p)}
	have, err := o.nl.AddrList(br, unix.AF_INET)
	if err != nil {
		return err
	}
	there := false
	for _, a := range have {
		if a.IPNet.String() == want.IPNet.String() {
			there = true
		} else if err := o.nl.AddrDel(br, &a); err != nil {
			return err
		}
	}
	if there {
		return nil
	}
	return o.nl.AddrAdd(br, want)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// mtu is what the network's options say, or the least that the ways to this
// node's peers carry, less VXLAN's own.
func (o *Overlay) mtu(v *view) (int, error) {
	if v.net.MTU > 0 {
		return v.net.MTU, nil
	}
	least := 0
	addrs := []netip.Addr{v.self}
	for _, p := range v.peers {
		addrs = append(addrs, p.DataAddr)
	}
	for _, a := range addrs {
		if _, known := o.mtus[a]; !known && a.IsValid() {
			o.mtus[a] = o.pathMTU(a, a == v.self)
		}
		if m := o.mtus[a]; m > 0 && (least == 0 || m < least) {
			least = m
		}
	}
	if least == 0 {
		return 0, cluster.Unavailablef("no interface has the data path address %s", v.self)
	}
	return min(least-vxlanOverhead, 65535-vxlanOverhead), nil
}

// pathMTU is the MTU of the way to a, or of the link that has it; 0 if there is
// none at present.
func (o *Overlay) pathMTU(a netip.Addr, own bool) int {
	index := 0
	if own {
		addrs, err := o.nl.AddrList(nil, unix.AF_INET)
		if err != nil {
			return 0
		}
		for _, have := range addrs {
			if have.IP.Equal(a.AsSlice()) {
				index = have.LinkIndex
			}
		}
	} else {
		routes, err := o.nl.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return 0
		}
		if routes[0].MTU > 0 {
			return routes[0].MTU
		}
		index = routes[0].LinkIndex
	}
	l, err := o.nl.LinkByIndex(index)
	if err != nil {
		return 0
	}
	return l.Attrs().MTU
}

// setMTU changes a network's MTU on its devices and in its containers.
func (o *Overlay) setMTU(networkID string, d *device, mtu int) error {
	o.log.Info("MTU of a network changes", "network", networkID, "from", d.mtu, "to", mtu)
	for _, i := range []int{d.vxlan, d.bridge} {
		l, err := o.nl.LinkByIndex(i)
		if err == nil {
			err = o.nl.LinkSetMTU(l, mtu)
		}
		if err != nil {
			return err
		}
	}
	for _, sb := range o.sandboxesOf(map[string]bool{networkID: true}) {
		if err := o.setSandboxMTU(sb, networkID, mtu); err != nil {
			return err
		}
	}
	o.mu.Lock()
	d.mtu = mtu
	o.mu.Unlock()
	return nil
}

// addRemotes enters who holds which address behind which node.
func (o *Overlay) addRemotes(v *view, d *device) error {
	if d.remote == nil {
		have, err := o.readRemotes(v, d)
		if err != nil {
			return err
		}
		d.remote = have
		v = o.addGone(v, have)
	}
	for a, node := range v.remote {
		if d.remote[a] == node {
			continue
		}
		if err := o.eachEntry(v, d, a, node, o.nl.NeighSet); err != nil {
			return fmt.Errorf("network %s: entry %s behind %s: %w", v.net.Name, a, node, err)
		}
		d.remote[a] = node
	}
	return nil
}

// addGone counts those among the departed that an earlier process knew and
// nobody told us of, and returns the network's view with them.
func (o *Overlay) addGone(v *view, had map[netip.Addr]netip.Addr) *view {
	here := map[netip.Addr]bool{}
	for _, e := range v.endpoints {
		here[e.Addr] = true
	}
	for _, p := range v.peers {
		here[p.NodeAddr] = true
	}
	for _, a := range v.gone {
		here[a] = true
	}
	w := *v
	w.gone = slices.Clone(v.gone)
	for a := range had {
		if !here[a] && v.net.Subnet.Contains(a) {
			w.gone = append(w.gone, a)
		}
	}
	w.gone = w.gone[max(0, len(w.gone)-maxGone):]
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.views[v.net.ID] == v {
		o.views[v.net.ID] = &w
	}
	return &w
}

// dropRemotes removes the entries that the view has not.
func (o *Overlay) dropRemotes(v *view) error {
	o.mu.Lock()
	d := o.devices[v.net.ID]
	o.mu.Unlock()
	if d == nil || d.remote == nil {
		return nil
	}
	for a, node := range d.remote {
		if _, wanted := v.remote[a]; wanted {
			continue
		}
		err := o.eachEntry(v, d, a, node, func(n *netlink.Neigh) error {
			return ignoreMissing(o.nl.NeighDel(n))
		})
		if err != nil {
			return fmt.Errorf("network %s: entry %s behind %s: %w", v.net.Name, a, node, err)
		}
		delete(d.remote, a)
	}
	return nil
}

// eachEntry does what is to be done with the kernel's entries for a: where
// VXLAN sends its frames, what it answers to ARP, and on the ingress network
// the host's own neighbour.
func (o *Overlay) eachEntry(v *view, d *device, a, node netip.Addr, do func(*netlink.Neigh) error) error {
	if !node.IsValid() {
		node = netip.IPv4Unspecified() // a left-over that is to go
	}
	mac := hardware(a)
	entries := []*netlink.Neigh{
		{LinkIndex: d.vxlan, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: node.AsSlice()},
		{LinkIndex: d.vxlan, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: a.AsSlice()},
	}
	if v.net.Ingress {
		entries = append(entries, &netlink.Neigh{LinkIndex: d.bridge, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: a.AsSlice()})
	}
	for _, n := range entries {
		if err := do(n); err != nil {
			return err
		}
	}
	return nil
}

// readRemotes finds the entries an earlier process left. One that is not whole
// counts as leading nowhere, so that it is made whole or removed.
func (o *Overlay) readRemotes(v *view, d *device) (map[netip.Addr]netip.Addr, error) {
	have := map[netip.Addr]netip.Addr{}
	fdb, err := o.nl.NeighList(d.vxlan, unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	for _, n := range fdb {
		node, ok := netip.AddrFromSlice(n.IP.To4())
		if ok && len(n.HardwareAddr) == 6 && n.HardwareAddr[0] == 2 && n.HardwareAddr[1] == 0x42 {
			have[netip.AddrFrom4([4]byte(n.HardwareAddr[2:]))] = node
		}
	}
	links := []int{d.vxlan}
	if v.net.Ingress {
		links = append(links, d.bridge)
	}
	for _, link := range links {
		neighs, err := o.nl.NeighList(link, unix.AF_INET)
		if err != nil {
			return nil, err
		}
		there := map[netip.Addr]bool{}
		for _, n := range neighs {
			a, ok := netip.AddrFromSlice(n.IP.To4())
			if !ok || n.State&netlink.NUD_PERMANENT == 0 || !v.net.Subnet.Contains(a) {
				continue
			}
			there[a] = true
			if _, known := have[a]; !known {
				have[a] = netip.Addr{}
			}
		}
		for a := range have {
			if !there[a] {
				have[a] = netip.Addr{}
			}
		}
	}
	return have, nil
}

func (o *Overlay) deviceStands(networkID string) bool {
	o.mu.Lock()
	d := o.devices[networkID]
	o.mu.Unlock()
	if d == nil {
		return false
	}
	for name, index := range map[string]int{bridgeName(d.vni): d.bridge, vxlanName(d.vni): d.vxlan} {
		l, err := o.nl.LinkByName(name)
		if err != nil || l.Attrs().Index != index {
			return false
		}
	}
	return true
}

func (o *Overlay) forgetDevice(networkID string) *device {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.devices[networkID]
	delete(o.devices, networkID)
	return d
}

// dropDevice removes the devices of a network that is no longer wanted.
func (o *Overlay) dropDevice(networkID string) error {
	d := o.forgetDevice(networkID)
	if d == nil {
		return nil
	}
	return o.deleteLinks(vxlanName(d.vni), bridgeName(d.vni))
}

func (o *Overlay) deleteLinks(names ...string) error {
	for _, name := range names {
		if o.cfg.RemoveLink != nil {
			if err := o.cfg.RemoveLink(name); err != nil {
				return fmt.Errorf("link %s: %w", name, err)
			}
			continue
		}
		l, err := o.nl.LinkByName(name)
		if err == nil {
			err = o.nl.LinkDel(l)
		}
		if err := ignoreMissing(err); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

// sweepDevices removes devices that an earlier process made for networks that
// are not wanted any more.
func (o *Overlay) sweepDevices(views map[string]*view) error {
	wanted := map[string]bool{}
	for _, v := range views {
		wanted[bridgeName(v.net.VNI)] = true
		wanted[vxlanName(v.net.VNI)] = true
	}
	links, err := o.nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		name := l.Attrs().Name
		ours := strings.HasPrefix(l.Attrs().Alias, aliasPrefix) &&
			(strings.HasPrefix(name, "sk-") || strings.HasPrefix(name, "skx-"))
		if ours && !wanted[name] {
			if err := ignoreMissing(o.nl.LinkDel(l)); err != nil {
				return fmt.Errorf("link %s: %w", name, err)
			}
		}
	}
	return nil
}
