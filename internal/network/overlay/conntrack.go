package overlay

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// udpFlow matches UDP flows that the rules would no longer make: by their first
// destination, who answers, and the port that was asked for. UDP has no end: a
// flow would follow a back end that left, or stay with none, for ever.
type udpFlow func(to, from netip.Addr, port uint16) bool

// lingerSeconds is how long a flow to a back end that leaves in order goes on:
// the answers that are under way still find back.
const lingerSeconds = 1

// end ends the stale flows: at once, or, where stays says of the back end that
// it is still there, soon.
func (f *flows) end(stale udpFlow, stays func(netip.Addr) bool) error {
	var todo [][]byte
	err := f.dump(func(fl *flow) {
		if fl.orig.proto != unix.IPPROTO_UDP || !stale(fl.orig.dst, fl.reply.src, fl.orig.port) {
			return
		}
		switch {
		case fl.orig.dst == fl.reply.src || !stays(fl.reply.src):
			todo = append(todo, ctMessage(ctDelete, attribute(ctaTupleOrig|unix.NLA_F_NESTED, fl.orig.raw)))
		case fl.status&ctFixedTimeout == 0:
			status := fl.status | ctSeenReply | ctAssured | ctFixedTimeout
			todo = append(todo, ctMessage(ctNew,
				attribute(ctaTupleOrig|unix.NLA_F_NESTED, fl.orig.raw),
				attribute(ctaTimeout, binary.BigEndian.AppendUint32(nil, lingerSeconds)),
				attribute(ctaStatus, binary.BigEndian.AppendUint32(nil, status))))
		}
	})
	if err != nil {
		return err
	}
	// One that has ended meanwhile is no error, and nothing else can be wrong
	// with a message that the kernel's own was copied into.
	const atOnce = 256
	for part := range slices.Chunk(todo, atOnce) {
		if err := f.send(part); err != nil {
			return err
		}
	}
	return nil
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
