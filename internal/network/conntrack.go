package network

import (
	"net/netip"

	"github.com/vishvananda/netlink"
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
