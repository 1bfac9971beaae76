package allocate

import (
	"encoding/binary"
	"net/netip"
)

// pool hands out the addresses of one subnet, each one to one holder. It goes on
// from the last one given instead of starting over, so that an address rests for
// as long as it can before it is used again: its last holder may still be alive
// on a host that lost its managers.
type pool struct {
	subnet   netip.Prefix
	lo, hi   uint32 // the first and last address that may be given unasked
	next     uint32
	held     map[uint32]int // how many hold it: more than one only by a fault
	inRange  int            // how many of lo…hi are held
	lastUsed int64          // creation time of the youngest holder, to find next
}

func newPool(subnet, rang netip.Prefix, gateway netip.Addr) *pool {
	lo, hi := bounds(subnet)
	p := &pool{subnet: subnet, lo: lo + 1, hi: hi - 1, held: map[uint32]int{}}
	if rang.IsValid() && subnet.Overlaps(rang) {
		rlo, rhi := bounds(rang)
		p.lo, p.hi = max(p.lo, rlo), min(p.hi, rhi)
	}
	p.next = p.lo
	if gateway.IsValid() {
		p.take(gateway)
	}
	return p
}

// bounds returns the first and last address of a prefix (IPv4).
func bounds(p netip.Prefix) (lo, hi uint32) {
	lo = number(p.Masked().Addr())
	return lo, lo | uint32(1<<(32-p.Bits())-1)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// take notes that a is held.
func (p *pool) take(a netip.Addr) {
	if !a.Is4() {
		return
	}
	n := number(a)
	if p.held[n]++; p.held[n] == 1 && n >= p.lo && n <= p.hi {
		p.inRange++
	}
}

// goOnAfter lets the search go on behind a if its holder was the youngest so far.
func (p *pool) goOnAfter(a netip.Addr, created int64) {
	if !a.Is4() || created <= 0 || created < p.lastUsed {
		return
	}
	n := number(a)
	if n < p.lo || n > p.hi || created == p.lastUsed && n < p.next {
		return
	}
	p.lastUsed, p.next = created, n+1
}

func (p *pool) free(a netip.Addr) {
	if !a.Is4() {
		return
	}
	n := number(a)
	switch p.held[n] {
	case 0:
		return
	case 1:
		delete(p.held, n)
		if n >= p.lo && n <= p.hi {
			p.inRange--
		}
	default:
		p.held[n]--
	}
}

func (p *pool) holds(a netip.Addr) bool { return a.Is4() && p.held[number(a)] > 0 }

// give takes the next free address; ok is false when there is none.
func (p *pool) give() (a netip.Addr, ok bool) {
	if p.hi < p.lo || p.inRange >= int(p.hi-p.lo)+1 {
		return netip.Addr{}, false
	}
	for n := p.next; ; n++ {
		if n < p.lo || n > p.hi {
			n = p.lo
		}
		if p.held[n] == 0 {
			p.take(address(n))
			p.next = n + 1
			return address(n), true
		}
	}
}
