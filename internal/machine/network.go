package machine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/skep-dev/skep/internal/cluster"
)

// A fleet's network on the host: one bridge with the host's address on it, one
// cable a machine, one table that lets the machines out and one that parts them.

const firstHost = 11 // the first machine's last byte; the host has 1

func addrOf(subnet netip.Prefix, n int) netip.Addr {
	b := subnet.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

// ensureBridge makes the fleet's bridge, with a subnet the host does not use.
func (f *Fleet) ensureBridge() error {
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	if !f.Subnet.IsValid() {
		subnet, err := freeSubnet()
		if err != nil {
			return err
		}
		f.Subnet = subnet
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: f.Bridge}}
	if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("bridge %s: %w", f.Bridge, err)
	}
	link, err := netlink.LinkByName(f.Bridge)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: addrOf(f.Subnet, 1).AsSlice(), Mask: net.CIDRMask(f.Subnet.Bits(), 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("bridge %s: address: %w", f.Bridge, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	// Machines reach the host's network outward through the host.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	return f.firewall(nil)
}

// lockHost has one fleet of this host at a time choose a subnet and take it: two
// on one subnet hear each other's translation of addresses, and nothing else.
func lockHost() (unlock func(), err error) {
	run, err := os.Open("/run")
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(run.Fd()), syscall.LOCK_EX); err != nil {
		run.Close()
		return nil, err
	}
	return func() { run.Close() }, nil
}

// freeSubnet returns the first 10.77.0.0/24, 10.78.0.0/24, … that no route of
// the host touches.
func freeSubnet() (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, err
	}
	for n := 77; n < 128; n++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 24)
		taken := false
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP == nil {
				continue
			}
			a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
			ones, _ := r.Dst.Mask.Size()
			taken = taken || ones > 0 && netip.PrefixFrom(a, ones).Overlaps(p)
		}
		if !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, cluster.Unavailablef("no free subnet between 10.77.0.0/24 and 10.127.0.0/24 for the machines")
}

// plug lays a machine's cable: one end on the bridge, the other as eth0 in the
// network namespace of its first process.
func (f *Fleet) plug(m *Machine, pid int) error {
	if old, err := netlink.LinkByName(m.Link); err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return err
		}
	}
	br, err := netlink.LinkByName(f.Bridge)
	if err != nil {
		return err
	}
	mac := cluster.MAC(m.Addr)
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: m.Link, MasterIndex: br.Attrs().Index, TxQLen: 1000, Flags: net.FlagUp},
		PeerName:         "eth0",
		PeerHardwareAddr: net.HardwareAddr(mac[:]),
		PeerNamespace:    netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("machine %s: cable %s: %w", m.Name, m.Link, err)
	}
	link, err := netlink.LinkByName(m.Link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// unplug takes a machine's cable away; its peer goes with it.
func unplug(m *Machine) error {
	link, err := netlink.LinkByName(m.Link)
	if err != nil {
		return nil // it went with the namespace
	}
	return netlink.LinkDel(link)
}

// removeNetwork takes the fleet's bridge and tables off the host.
func (f *Fleet) removeNetwork() error {
	if link, err := netlink.LinkByName(f.Bridge); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			return err
		}
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	return f.dropTables(c)
}

func (f *Fleet) dropTables(c *nftables.Conn) error {
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == f.Bridge {
			c.DelTable(t)
		}
	}
	return c.Flush()
}

// firewall writes the fleet's tables anew: masquerading towards the outside, and
// a drop between every two machines on different sides of a partition.
func (f *Fleet) firewall(ms []*Machine) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	if err := f.dropTables(c); err != nil {
		return err
	}
	ip := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: f.Bridge})
	post := c.AddChain(&nftables.Chain{Name: "outward", Table: ip, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	net4, mask := f.Subnet.Masked().Addr().AsSlice(), net.CIDRMask(f.Subnet.Bits(), 32)
	c.AddRule(&nftables.Rule{Table: ip, Chain: post, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net4},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(f.Bridge)},
		&expr.Masq{},
	}})
	l2 := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: f.Bridge})
	fwd := c.AddChain(&nftables.Chain{Name: "partition", Table: l2, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	for _, a := range ms {
		for _, b := range ms {
			if a.Side == b.Side {
				continue
			}
			c.AddRule(&nftables.Rule{Table: l2, Chain: fwd, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(a.Link)},
				&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(b.Link)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	return c.Flush()
}

func ifname(s string) []byte {
	b := make([]byte, 16)
	copy(b, s)
	return b
}
