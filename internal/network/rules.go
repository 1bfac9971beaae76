package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that the firewall's rules are written with. Register 1 is the only
// one used, but for the keys of the port maps.

type words []expr.Any

// rule joins words to a rule's expressions.
func rule(parts ...words) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// ifKey is an interface's name as nftables compares it.
func ifKey(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

func iifname(name string, op expr.CmpOp) words {
	return words{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: ifKey(name)}}
}

func oifname(name string, op expr.CmpOp) words {
	return words{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: ifKey(name)}}
}

func iifIn(set *nftables.Set) words {
	return words{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

func oifIn(set *nftables.Set) words {
	return words{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

const (
	offsetSource = 12
	offsetDest   = 16
)

// addrIn matches a packet whose address at offset of the IPv4 header lies in p.
func addrIn(offset uint32, p netip.Prefix) words {
	mask := fromUint(^uint32(0) << (32 - p.Bits())).As4()
	if p.Bits() == 0 {
		mask = [4]byte{}
	}
	net := p.Masked().Addr().As4()
	return words{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net[:]},
	}
}

// toHost matches packets for an address of the host's own.
func toHost() words {
	return words{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

const (
	ctStatusDNAT = 1 << 5 // IPS_DST_NAT
	ctStateKnown = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
)

func ctBits(key expr.CtKey, bits uint32) words {
	return words{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// published matches packets that were sent to a published port.
func published() words { return ctBits(expr.CtKeySTATUS, ctStatusDNAT) }

// known matches packets of connections that were let through before.
func known() words { return ctBits(expr.CtKeySTATE, ctStateKnown) }

func accept() words     { return words{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() words       { return words{&expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade() words { return words{&expr.Masq{}} }
func jump(chain string) words {
	return words{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// 32-bit registers, as the keys of maps are laid out in them.
const (
	reg32_0 = unix.NFT_REG32_00
	reg32_1 = unix.NFT_REG32_01
	reg32_2 = unix.NFT_REG32_02
)

// dnatByMap sends a packet where the map says for its key: (address,) protocol
// and port.
func dnatByMap(m *nftables.Set, withAddr bool) words {
	var w words
	at := uint32(reg32_0)
	if withAddr {
		w = append(w, &expr.Payload{DestRegister: at, Base: expr.PayloadBaseNetworkHeader, Offset: offsetDest, Len: 4})
		at++
	}
	return append(w,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: at + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32_0, DestRegister: reg32_0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32_0, RegProtoMin: reg32_1},
	)
}
