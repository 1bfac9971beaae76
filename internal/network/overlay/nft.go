package overlay

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/nft"
)

// protocols are the ones ports are published for.
var protocols = map[string]uint8{
	"": unix.IPPROTO_TCP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP,
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	default:
		return "sctp"
	}
}

// Values of the kernel's that x/sys lacks or hides.
const (
	icmpHost = 1 // host unreachable
	icmpPort = 3 // port unreachable

	prioRaw     = -300
	prioMangle  = -150
	prioDNAT    = -100
	prioFilter  = 0
	prioSNAT    = 100
	netdevFirst = 0
)

// wire talks to one namespace's netfilter. It is kept as long as the namespace
// is ours: closing such a socket makes the kernel wait until what it deleted
// can be freed, some 10 ms.
type wire struct {
	nft *nftables.Conn
	ct  *flows // nil until needed
	ns  netns.NsHandle
}

// netlinkBuffer holds the largest transaction and the kernel's answers to it.
const netlinkBuffer = 16 << 20

func dial(ns netns.NsHandle) (*wire, error) {
	own, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	buffers := func(c *mdnetlink.Conn) error {
		if err := c.SetWriteBuffer(netlinkBuffer); err != nil {
			return err
		}
		return c.SetReadBuffer(netlinkBuffer)
	}
	c, err := nftables.New(nftables.WithNetNSFd(own), nftables.AsLasting(), nftables.WithSockOptions(buffers))
	if err != nil {
		_ = unix.Close(own)
		return nil, err
	}
	return &wire{nft: c, ns: netns.NsHandle(own)}, nil
}

func (w *wire) close() {
	if w == nil {
		return
	}
	_ = w.nft.CloseLasting()
	if w.ct != nil {
		w.ct.close()
	}
	_ = w.ns.Close()
}

// forget ends UDP flows of the namespace; those to addresses that stay end
// softly.
func (w *wire) forget(stale udpFlow, stays func(netip.Addr) bool) (err error) {
	if w.ct == nil {
		if w.ct, err = dialFlows(w.ns); err != nil {
			return err
		}
	}
	if err = w.ct.end(stale, stays); err != nil {
		w.ct.close() // there may be answers in it that nobody has read
		w.ct = nil
	}
	return err
}

// stands says whether a chain of ours still has rules.
func (w *wire) stands(table, chain string) bool {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: table}
	rules, err := w.nft.GetRules(t, &nftables.Chain{Table: t, Name: chain})
	return err == nil && len(rules) > 0
}

// batch is one nftables transaction in one namespace: all of it happens at
// once, or nothing.
type batch struct {
	*nftables.Conn
	sets uint32
	err  error
}

func (w *wire) batch() *batch { return &batch{Conn: w.nft} }

// commit sends the transaction. After an error the wire is to be closed: there
// may be answers in it that nobody has read.
func (b *batch) commit() error {
	if b.err != nil {
		return b.err
	}
	return b.Flush()
}

// freshTable makes a table empty, whether there was one or not.
func (b *batch) freshTable(family nftables.TableFamily, name string) *nftables.Table {
	t := &nftables.Table{Family: family, Name: name}
	b.AddTable(t)
	b.DelTable(t)
	return b.AddTable(t)
}

// dropTable removes a table, whether there was one or not.
func (b *batch) dropTable(family nftables.TableFamily, name string) {
	t := &nftables.Table{Family: family, Name: name}
	b.AddTable(t)
	b.DelTable(t)
}

func (b *batch) base(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, prio int32) *nftables.Chain {
	return b.AddChain(&nftables.Chain{
		Name: name, Table: t, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(prio)),
	})
}

func (b *batch) rule(c *nftables.Chain, parts ...nft.Words) {
	b.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: nft.Rule(parts...)})
}

func (b *batch) set(s *nftables.Set, elements []nftables.SetElement) {
	// The library numbers sets by a global that is not safe between goroutines.
	b.sets++
	s.ID = b.sets
	if s.Anonymous {
		s.Name = "__map%d"
	}
	if err := b.AddSet(s, elements); err != nil && b.err == nil {
		b.err = err
	}
}

func (b *batch) add(s *nftables.Set, e ...nftables.SetElement) {
	if err := b.SetAddElements(s, e); err != nil && b.err == nil {
		b.err = err
	}
}

func (b *batch) del(s *nftables.Set, e ...nftables.SetElement) {
	if err := b.SetDeleteElements(s, e); err != nil && b.err == nil {
		b.err = err
	}
}

// balance sends a new connection to one of the addresses by chance, with the
// port if one is given; without addresses it is refused.
func (b *batch) balance(c *nftables.Chain, to []netip.Addr, port uint16) {
	if len(to) == 0 {
		b.refuse(c, nil, icmpPort)
		return
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}
	var pick nft.Words
	if len(to) == 1 {
		pick = nft.Words{&expr.Immediate{Register: 1, Data: to[0].AsSlice()}}
	} else {
		m := &nftables.Set{
			Table: c.Table, Anonymous: true, Constant: true, IsMap: true,
			KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.NativeEndian,
		}
		elements := make([]nftables.SetElement, len(to))
		for i, a := range to {
			elements[i] = nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: a.AsSlice()}
		}
		b.set(m, elements)
		// Should a packet be just here when the rules change, it may find the
		// map empty already: then it takes the first.
		defer b.balance(c, to[:1], port)
		pick = nft.Words{
			&expr.Numgen{Register: 1, Modulus: uint32(len(to)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetID: m.ID, SetName: m.Name},
		}
	}
	if port != 0 {
		pick = append(pick, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)})
		nat.RegProtoMin, nat.Specified = 2, true
	}
	b.rule(c, pick, nft.Words{nat})
}

// refuse answers what matches: TCP with a reset, the rest with ICMP.
func (b *batch) refuse(c *nftables.Chain, match nft.Words, icmp uint8) {
	b.rule(c, match, nft.Transport(unix.IPPROTO_TCP), nft.Words{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(c, match, nft.Words{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmp}})
}

// destIn looks the destination address up in a set, or for a verdict in a map.
func destIn(s *nftables.Set) nft.Words {
	return nft.Words{nft.Addr(nft.Dest), nft.In(s)}
}

// portIn looks protocol and destination port up.
func portIn(s *nftables.Set) nft.Words {
	return nft.Words{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		nft.In(s),
	}
}

func element(a netip.Addr) nftables.SetElement { return nftables.SetElement{Key: a.AsSlice()} }

func gotoChain(key []byte, chain string) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// key is the port as an element of a concatenated set: each part fills four
// bytes.
func (p port) key() []byte {
	return []byte{p.proto, 0, 0, 0, byte(p.number >> 8), byte(p.number), 0, 0}
}

func (p port) String() string { return fmt.Sprintf("%s-%d", protocolName(p.proto), p.number) }
