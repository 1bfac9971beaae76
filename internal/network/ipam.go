package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/skep-dev/skep/internal/cluster"
)

// Which addresses are in use is not kept in a table of its own: it follows from
// the networks and sandboxes on record, so the two can never disagree. Everything
// here is pure.

var errNoPool = cluster.Invalidf("all predefined address pools have been fully subnetted")

// pickSubnet returns the first subnet of the pools that overlaps nothing in use.
func pickSubnet(pools []Pool, used []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		base := p.Base.Masked()
		step := uint64(1) << (32 - p.Size)
		end := uint64(toUint(base.Addr())) + uint64(1)<<(32-base.Bits())
		for at := uint64(toUint(base.Addr())); at < end; at += step {
			sub := netip.PrefixFrom(fromUint(uint32(at)), p.Size)
			if overlapping(sub, used) == nil {
				return sub, nil
			}
		}
	}
	return netip.Prefix{}, errNoPool
}

// overlapping returns the prefix of used that overlaps sub, or nil.
func overlapping(sub netip.Prefix, used []netip.Prefix) *netip.Prefix {
	for i := range used {
		if used[i].IsValid() && sub.Overlaps(used[i]) {
			return &used[i]
		}
	}
	return nil
}

// pickAddr returns wanted if it is free, or the lowest free address of r when
// wanted is the zero Addr.
func pickAddr(r *netRecord, taken map[netip.Addr]bool, wanted netip.Addr) (netip.Addr, error) {
	unusable := func(a netip.Addr) bool {
		return taken[a] || a == r.Gateway || a == r.Subnet.Masked().Addr() || a == broadcast(r.Subnet)
	}
	if wanted.IsValid() {
		if !wanted.Is4() || !r.Subnet.Contains(wanted) {
			return wanted, cluster.Invalidf("no configured subnet contains IP address %s", wanted)
		}
		if unusable(wanted) {
			return wanted, cluster.Deniedf("Address already in use")
		}
		return wanted, nil
	}
	from := r.Subnet
	if r.Range.IsValid() {
		from = r.Range
	}
	for a := from.Masked().Addr(); from.Contains(a); a = a.Next() {
		if !unusable(a) && !r.aux(a) {
			return a, nil
		}
	}
	return netip.Addr{}, cluster.Deniedf("no available IPv4 addresses on this network's address pools: %s (%s)", r.Name, r.ID)
}

// pickGateway returns the first address of a subnet.
func pickGateway(sub netip.Prefix) netip.Addr { return sub.Masked().Addr().Next() }

// broadcast returns a subnet's last address, or the zero Addr for one too small
// to have any.
func broadcast(sub netip.Prefix) netip.Addr {
	if sub.Bits() >= 31 {
		return netip.Addr{}
	}
	return fromUint(toUint(sub.Masked().Addr()) | uint32(uint64(1)<<(32-sub.Bits())-1))
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromUint(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
