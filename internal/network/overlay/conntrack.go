package overlay

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// udpFlow matches UDP flows that the rules would no longer make. UDP has no
// end: a flow would follow a back end that left, or stay with none, for ever.
type udpFlow func(to, from netip.Addr, port uint16) bool

// MatchConntrackFlow tells the flow's first destination, who answers, and the
// port that was asked for.
func (match udpFlow) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, ok1 := netip.AddrFromSlice(f.Forward.DstIP.To4())
	from, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	return ok1 && ok2 && match(to, from, f.Forward.DstPort)
}

// staleVIPFlows matches flows to a virtual address that go to none of its back
// ends, and tells the addresses; nil if the change from was to now cannot have
// left any.
func staleVIPFlows(was, now *taskRules) (udpFlow, map[netip.Addr][]netip.Addr) {
	may := map[netip.Addr][]netip.Addr{}
	for id, t := range now.vips {
		if was != nil && was.vips[id] != nil && subset(was.vips[id].backends, t.backends) && was.vips[id].svc.VIP == t.svc.VIP {
			continue
		}
		may[t.svc.VIP] = t.backends
	}
	if was != nil {
		for id, t := range was.vips {
			if now.vips[id] == nil && may[t.svc.VIP] == nil {
				may[t.svc.VIP] = nil
			}
		}
	}
	if len(may) == 0 {
		return nil, nil
	}
	return func(to, from netip.Addr, _ uint16) bool {
		backends, ours := may[to]
		return ours && !slices.Contains(backends, from)
	}, may
}

// staleMeshFlows matches flows to published ports that go to none of the ports'
// back ends; nil if the change cannot have left any.
func staleMeshFlows(was, now *meshState) udpFlow {
	may := map[uint16][]netip.Addr{}
	for p, to := range now.ports {
		if p.proto != unix.IPPROTO_UDP {
			continue
		}
		if was != nil {
			if old, ok := was.ports[p]; ok && old.port == to.port && subset(old.backends, to.backends) {
				continue
			}
		}
		may[p.number] = to.backends
	}
	if was != nil {
		for p := range was.ports {
			if _, still := now.ports[p]; !still && p.proto == unix.IPPROTO_UDP {
				may[p.number] = nil
			}
		}
	}
	if len(may) == 0 {
		return nil
	}
	return func(to, from netip.Addr, port uint16) bool {
		backends, ours := may[port]
		translated := now.subnet.Contains(from)
		return ours && (translated || to == from) && !slices.Contains(backends, from)
	}
}

func subset(a, b []netip.Addr) bool {
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}
