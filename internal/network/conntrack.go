package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// udpFlows matches the tracked UDP flows that were sent to published ports, or
// go to one of the targets.
type udpFlows map[portKey]netip.AddrPort

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (u udpFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	for k, to := range u {
		if k.Proto == unix.IPPROTO_UDP && (flow.Forward.DstPort == k.Port || flow.Reverse.SrcPort == to.Port() && flow.Reverse.SrcIP.Equal(to.Addr().AsSlice())) {
			return true
		}
	}
	return false
}

// forgetFlows ends tracked UDP flows of ports that were just published or
// withdrawn: a client that keeps sending would stay where it was led before.
func (l *links) forgetFlows(ports map[portKey]netip.AddrPort) error {
	udp := udpFlows{}
	for k, v := range ports {
		if k.Proto == unix.IPPROTO_UDP {
			udp[k] = v
		}
	}
	if len(udp) == 0 {
		return nil
	}
	_, err := l.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, udp)
	return err
}

const tableAnswers = "skep-answers"

// untrackAsked sets a task on the ingress network up to answer over UDP on ports
// of its gateway interface. A socket without an address of its own answers from
// the ingress address, and the overlay's rules turn that into the gateway
// interface's. They could not, for the same pair of addresses and ports, if the
// question had been tracked under them.
func untrackAsked(ns netns.NsHandle, ifname string, bs []binding) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableAnswers})
	raw := c.AddChain(&nftables.Chain{Name: "raw", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	n := 0
	for _, b := range bs {
		if protocols[b.Proto] != unix.IPPROTO_UDP {
			continue
		}
		n++
		c.AddRule(&nftables.Rule{Table: t, Chain: raw, Exprs: rule(
			iifname(ifname, expr.CmpOpEq),
			words{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(b.ContainerPort)},
				&expr.Notrack{},
			})})
	}
	if n == 0 {
		return nil // nothing is sent
	}
	return c.Flush()
}
