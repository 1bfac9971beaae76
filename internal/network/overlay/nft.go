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
	ctDirOriginal = 0
	ctDirReply    = 1
	ctStatusDNAT  = 1 << 5
	icmpHost      = 1 // host unreachable
	icmpPort      = 3 // port unreachable

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

func (b *batch) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	b.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: all})
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
	var pick []expr.Any
	if len(to) == 1 {
		pick = []expr.Any{&expr.Immediate{Register: 1, Data: to[0].AsSlice()}}
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
		pick = []expr.Any{
			&expr.Numgen{Register: 1, Modulus: uint32(len(to)), Type: unix.NFT_NG_RANDOM},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetID: m.ID, SetName: m.Name},
		}
	}
	if port != 0 {
		pick = append(pick, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)})
		nat.RegProtoMin, nat.Specified = 2, true
	}
	b.rule(c, pick, []expr.Any{nat})
}

// refuse answers what matches: TCP with a reset, the rest with ICMP.
func (b *batch) refuse(c *nftables.Chain, match []expr.Any, icmp uint8) {
	b.rule(c, match, l4proto(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(c, match, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmp}})
}

func cmpEq(data []byte) expr.Any  { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func cmpNeq(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

// ifname matches an interface by name; one that ends in * is a prefix.
func ifname(key expr.MetaKey, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	n := copy(data, name)
	if n > 0 && name[n-1] == '*' {
		data = data[:n-1]
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, cmpEq(data)}
}

func iif(name string) []expr.Any { return ifname(expr.MetaKeyIIFNAME, name) }
func oif(name string) []expr.Any { return ifname(expr.MetaKeyOIFNAME, name) }

func notIif(name string) []expr.Any {
	e := iif(name)
	e[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return e
}

func l4proto(p uint8) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, cmpEq([]byte{p})}
}

func ipField(offset uint32, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func source(a netip.Addr) []expr.Any {
	return []expr.Any{ipField(12, 1), cmpEq(a.AsSlice())}
}

// loopback matches 127.0.0.0/8 at an offset of the IP header.
func loopback(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1}, cmpEq([]byte{127}),
	}
}

// destIn looks the destination address up in a set, or for a verdict in a map.
func destIn(s *nftables.Set) []expr.Any {
	return []expr.Any{ipField(16, 1), lookup(s)}
}

// portIn looks protocol and destination port up.
func portIn(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Payload{DestRegister: 9, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup(s),
	}
}

func lookup(s *nftables.Set) expr.Any {
	l := &expr.Lookup{SourceRegister: 1, SetID: s.ID, SetName: s.Name}
	if s.IsMap {
		l.IsDestRegSet = true // register 0: the verdict
	}
	return l
}

func ctDirection(dir byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, cmpEq([]byte{dir})}
}

func ctDNAT() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ctStatusDNAT), Xor: make([]byte, 4)},
		cmpNeq(make([]byte, 4)),
	}
}

func snat(to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

func destLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		cmpEq(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

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
