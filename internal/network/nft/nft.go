// Package nft is the words that network and overlay write nftables rules with.
// It knows no rule and talks to no kernel. Register 1 is the one that words use.
package nft

import (
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Words are a part of a rule, or all of it.
type Words = []expr.Any

// Rule joins words to a rule.
func Rule(parts ...Words) Words {
	var out Words
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// Eq goes on if what was read is data.
func Eq(data []byte) expr.Any { return compare(expr.CmpOpEq, data) }

// Neq goes on if what was read is not data.
func Neq(data []byte) expr.Any { return compare(expr.CmpOpNeq, data) }

func compare(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

// In looks up in a set what was read; in a map of verdicts it follows what it
// finds.
func In(s *nftables.Set) expr.Any {
	l := &expr.Lookup{SourceRegister: 1, SetID: s.ID, SetName: s.Name}
	if s.IsMap {
		l.IsDestRegSet = true // register 0: the verdict
	}
	return l
}

// Iif matches packets that came by an interface.
func Iif(name string) Words { return Words{meta(expr.MetaKeyIIFNAME), Eq(IfKey(name))} }

// NotIif matches packets that came by another interface.
func NotIif(name string) Words { return Words{meta(expr.MetaKeyIIFNAME), Neq(IfKey(name))} }

// Oif matches packets that leave by an interface. It is known only behind the
// routing decision.
func Oif(name string) Words { return Words{meta(expr.MetaKeyOIFNAME), Eq(IfKey(name))} }

// NotOif matches packets that leave by another interface.
func NotOif(name string) Words { return Words{meta(expr.MetaKeyOIFNAME), Neq(IfKey(name))} }

// IifLike is Iif, but a name that ends in * stands for all that begin so.
func IifLike(name string) Words {
	key := IfKey(name)
	if stem, more := strings.CutSuffix(name, "*"); more {
		key = key[:min(len(stem), len(key))]
	}
	return Words{meta(expr.MetaKeyIIFNAME), Eq(key)}
}

// IifIn matches packets that came by an interface of the set.
func IifIn(s *nftables.Set) Words { return Words{meta(expr.MetaKeyIIFNAME), In(s)} }

// OifIn matches packets that leave by an interface of the set.
func OifIn(s *nftables.Set) Words { return Words{meta(expr.MetaKeyOIFNAME), In(s)} }

// IfKey is an interface's name as nftables compares it.
func IfKey(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

// Field is where an address stands in the IPv4 header.
type Field uint32

// The two addresses of a packet.
const (
	Source Field = 12
	Dest   Field = 16
)

// Addr reads an address.
func Addr(at Field) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(at), Len: 4}
}

// Is matches packets with that very address.
func Is(at Field, a netip.Addr) Words { return Words{Addr(at), Eq(a.AsSlice())} }

// Within matches packets whose address lies in p.
func Within(at Field, p netip.Prefix) Words {
	mask := binaryutil.BigEndian.PutUint32(uint32(uint64(1<<32-1) << (32 - p.Bits())))
	return Words{
		Addr(at),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		Eq(p.Masked().Addr().AsSlice()),
	}
}

// Loopback is what 127.0.0.1 lies in.
var Loopback = netip.MustParsePrefix("127.0.0.0/8")

// ToHost matches packets for an address of the host's own.
func ToHost() Words {
	return Words{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		Eq(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

// Transport matches packets of a protocol above IP.
func Transport(p uint8) Words { return Words{meta(expr.MetaKeyL4PROTO), Eq([]byte{p})} }

// ToPort matches packets to a port; the protocol must be one that has some.
func ToPort(port uint16) Words {
	return Words{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		Eq(binaryutil.BigEndian.PutUint16(port)),
	}
}

// Led matches packets of connections whose destination was translated.
func Led() Words {
	const dnat = 1 << 5 // IPS_DST_NAT
	return tracked(expr.CtKeySTATUS, dnat)
}

// Known matches packets of connections that were let through before.
func Known() Words {
	return tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

func tracked(key expr.CtKey, bits uint32) Words {
	return Words{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		Neq(make([]byte, 4)),
	}
}

// Asking matches packets of a tracked connection in the direction of its first.
func Asking() Words { return direction(0) }

// Answering matches packets of a tracked connection in the other direction.
func Answering() Words { return direction(1) }

func direction(d byte) Words {
	return Words{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, Eq([]byte{d})}
}

// Accept lets a packet through, as far as this hook goes.
func Accept() Words { return Words{&expr.Verdict{Kind: expr.VerdictAccept}} }

// Drop ends a packet's way.
func Drop() Words { return Words{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Jump goes on in another chain.
func Jump(chain string) Words { return Words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

// Masquerade gives packets the address of the interface they leave by.
func Masquerade() Words { return Words{&expr.Masq{}} }

// From gives packets another source address.
func From(a netip.Addr) Words {
	return Words{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

// To sends packets to another address and port.
func To(a netip.AddrPort) Words {
	return Words{
		&expr.Immediate{Register: 1, Data: a.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(a.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}
