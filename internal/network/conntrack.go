package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/nft"
)

// flows matches tracked flows that lead to one of the targets and, with asked,
// UDP flows that were sent to the published ports before they were.
type flows struct {
	ports map[portKey]netip.AddrPort
	asked bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for k, to := range f.ports {
		if flow.Forward.Protocol != k.Proto {
			continue
		}
		if f.asked && flow.Forward.DstPort == k.Port ||
			flow.Reverse.SrcPort == to.Port() && flow.Reverse.SrcIP.Equal(to.Addr().AsSlice()) {
			return true
		}
	}
	return false
}

// forgetAsked ends tracked UDP flows to ports that were just published: a client
// that keeps sending would stay where it was led before.
func (l *links) forgetAsked(ports map[portKey]netip.AddrPort) error {
	udp := map[portKey]netip.AddrPort{}
	for k, v := range ports {
		if k.Proto == unix.IPPROTO_UDP {
			udp[k] = v
		}
	}
	return l.forget(flows{udp, true})
}

// forgetLed ends tracked flows to targets that are no more: who still sends is
// told so by the host, instead of waiting for an answer.
func (l *links) forgetLed(ports map[portKey]netip.AddrPort) error {
	return l.forget(flows{ports, false})
}

func (l *links) forget(f flows) error {
	if len(f.ports) == 0 {
		return nil
	}
	_, err := l.h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
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
		c.AddRule(&nftables.Rule{Table: t, Chain: raw, Exprs: nft.Rule(
			nft.Iif(ifname), nft.Transport(unix.IPPROTO_UDP), nft.ToPort(b.ContainerPort), nft.Words{&expr.Notrack{}})})
	}
	if n == 0 {
		return nil // nothing is sent
	}
	return c.Flush()
}
