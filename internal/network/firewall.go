package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/nft"
)

// Names of what the firewall owns. Everything in skep-bridge is ours and is put
// back when somebody takes it away. skep-user is the operator's: we only see to
// it that it exists. A packet dropped there is dropped, whatever we say; one
// accepted there still passes our own chains (decision 0040).
const (
	tableBridge = "skep-bridge"
	tableUser   = "skep-user"
)

const checkEvery = 5 * time.Second

// firewall keeps the host's rules as its model says. It changes the model and
// the kernel in turns: whoever holds the token may touch both.
type firewall struct {
	ns    netns.NsHandle
	log   *slog.Logger
	token chan struct{} // capacity 1, filled: free

	nets    map[string]*netRecord // by interface
	forward map[portKey]netip.AddrPort
	built   *ruleset // nil: not in the kernel

	changes *gather[portChange]
}

// portKey is a published port. Addr is the zero Addr for every address of the host.
type portKey struct {
	Addr  netip.Addr
	Proto byte
	Port  uint16
}

// ruleset is what was last put into the kernel.
type ruleset struct {
	table     *nftables.Table
	any, addr *nftables.Set
	rules     map[*nftables.Chain]int
}

func newFirewall(ns netns.NsHandle, log *slog.Logger) *firewall {
	f := &firewall{ns: ns, log: log, token: make(chan struct{}, 1),
		nets: map[string]*netRecord{}, forward: map[portKey]netip.AddrPort{}}
	f.token <- struct{}{}
	f.changes = newGather(f.change)
	return f
}

func (f *firewall) lock()   { <-f.token }
func (f *firewall) unlock() { f.token <- struct{}{} }

func (f *firewall) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(f.ns)))
}

// addNet and delNet change the bridges that the rules know.
func (f *firewall) addNet(r *netRecord) error {
	f.lock()
	defer f.unlock()
	f.nets[r.Link] = r
	return f.build()
}

func (f *firewall) delNet(r *netRecord) error {
	f.lock()
	defer f.unlock()
	if _, ok := f.nets[r.Link]; !ok {
		return nil
	}
	delete(f.nets, r.Link)
	return f.build()
}

// publish sends packets for the keys on to their targets.
func (f *firewall) publish(ports map[portKey]netip.AddrPort) error {
	if len(ports) == 0 {
		return nil
	}
	return f.changes.add(portChange{ports, true})
}

// withdraw takes published ports back. Ports that are not published are no error.
func (f *firewall) withdraw(ports map[portKey]netip.AddrPort) error {
	if len(ports) == 0 {
		return nil
	}
	return f.changes.add(portChange{ports, false})
}

// portChange is ports that come, or go.
type portChange struct {
	ports map[portKey]netip.AddrPort
	come  bool
}

// change works on single elements of the port maps; when the kernel's rules are
// not what they should be, it puts all of them back instead.
func (f *firewall) change(changes []portChange) error {
	f.lock()
	defer f.unlock()
	was := maps.Clone(f.forward)
	for _, ch := range changes {
		for k, v := range ch.ports {
			if ch.come {
				f.forward[k] = v
			} else if f.forward[k] == v {
				delete(f.forward, k)
			}
		}
	}
	if f.built == nil {
		return f.build()
	}
	gone, come := without(was, f.forward), without(f.forward, was)
	if len(gone)+len(come) == 0 {
		return nil
	}
	c, err := f.conn()
	if err != nil {
		return err
	}
	err = errors.Join(
		f.elements(c, (*nftables.Conn).SetDeleteElements, gone),
		f.elements(c, (*nftables.Conn).SetAddElements, come))
	if err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		f.log.Info("firewall rules are put back", "err", err)
		return f.build()
	}
	return nil
}

// without returns what a has and b has not, or has otherwise.
func without(a, b map[portKey]netip.AddrPort) map[portKey]netip.AddrPort {
	out := map[portKey]netip.AddrPort{}
	for k, v := range a {
		if b[k] != v {
			out[k] = v
		}
	}
	return out
}

// elements adds or deletes elements of the port maps.
func (f *firewall) elements(c *nftables.Conn, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error, ports map[portKey]netip.AddrPort) error {
	anyAddr, addr := portElements(ports)
	var errs []error
	if len(anyAddr) > 0 {
		errs = append(errs, do(c, f.built.any, anyAddr))
	}
	if len(addr) > 0 {
		errs = append(errs, do(c, f.built.addr, addr))
	}
	return errors.Join(errs...)
}

// portElements returns the elements of the two port maps.
func portElements(ports map[portKey]netip.AddrPort) (anyAddr, addr []nftables.SetElement) {
	for k, v := range ports {
		key := []byte{k.Proto, 0, 0, 0}
		key = append(binary.BigEndian.AppendUint16(key, k.Port), 0, 0)
		to := v.Addr().As4()
		val := append(binary.BigEndian.AppendUint16(to[:], v.Port()), 0, 0)
		if k.Addr.IsValid() {
			at := k.Addr.As4()
			addr = append(addr, nftables.SetElement{Key: append(at[:], key...), Val: val})
		} else {
			anyAddr = append(anyAddr, nftables.SetElement{Key: key, Val: val})
		}
	}
	return anyAddr, addr
}

// build replaces the whole table in one transaction.
func (f *firewall) build() error {
	c, err := f.conn()
	if err != nil {
		return err
	}
	f.built = nil
	f.userTable(c)
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableBridge}
	c.AddTable(t)
	c.DelTable(t)
	b := &builder{c: c, rs: &ruleset{table: c.AddTable(t), rules: map[*nftables.Chain]int{}}}
	for _, name := range sortedKeys(f.nets) {
		b.nets = append(b.nets, f.nets[name])
	}
	b.sets(f.forward)
	b.nat()
	b.filter()
	if b.err != nil {
		return fmt.Errorf("firewall: %w", b.err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	f.built = b.rs
	return nil
}

// userTable makes the operator's table and chain; both may exist.
func (f *firewall) userTable(c *nftables.Conn) {
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableUser})
	c.AddChain(&nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-10)})
}

// builder writes one ruleset.
type builder struct {
	c                 *nftables.Conn
	rs                *ruleset
	nets              []*netRecord // sorted by interface
	bridges, internal *nftables.Set
	err               error
}

func (b *builder) set(s *nftables.Set, elems []nftables.SetElement) *nftables.Set {
	s.Table = b.rs.table
	if err := b.c.AddSet(s, elems); err != nil && b.err == nil {
		b.err = err
	}
	return s
}

func (b *builder) sets(ports map[portKey]netip.AddrPort) {
	var open, closed []nftables.SetElement
	for _, r := range b.nets {
		elem := nftables.SetElement{Key: nft.IfKey(r.Link)}
		if r.Internal {
			closed = append(closed, elem)
		} else {
			open = append(open, elem)
		}
	}
	b.bridges = b.set(&nftables.Set{Name: "bridges", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, open)
	b.internal = b.set(&nftables.Set{Name: "internal", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, closed)
	anyAddr, addr := portElements(ports)
	to := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	b.rs.any = b.set(&nftables.Set{Name: "ports", IsMap: true, Concatenation: true, DataType: to,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}, anyAddr)
	b.rs.addr = b.set(&nftables.Set{Name: "address-ports", IsMap: true, Concatenation: true, DataType: to,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)}, addr)
}

// chain adds a chain; prio is nil for one that is only jumped to.
func (b *builder) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	ch := &nftables.Chain{Name: name, Table: b.rs.table, Type: typ, Hooknum: hook, Priority: prio}
	b.rs.rules[b.c.AddChain(ch)] = 0
	return ch
}

func (b *builder) rule(ch *nftables.Chain, parts ...nft.Words) {
	b.c.AddRule(&nftables.Rule{Table: b.rs.table, Chain: ch, Exprs: nft.Rule(parts...)})
	b.rs.rules[ch]++
}

// nat publishes ports and lets containers out under the host's address.
func (b *builder) nat() {
	pub := b.chain("publish", "", nil, nil)
	b.rule(pub, dnatByMap(b.rs.addr, true))
	b.rule(pub, dnatByMap(b.rs.any, false))
	pre := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	b.rule(pre, nft.ToHost(), nft.Jump(pub.Name))
	out := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	b.rule(out, nft.ToHost(), nft.Jump(pub.Name))

	post := b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, r := range b.nets {
		// A container that calls a published port of its own network would get
		// the answer straight from its neighbour, under an address it never called.
		b.rule(post, nft.Iif(r.Link), nft.Oif(r.Link), nft.Led(), nft.Masquerade())
		b.rule(post, nft.Oif(r.Link), nft.Within(nft.Source, nft.Loopback), nft.Masquerade())
		if r.Masquerade && !r.Internal {
			b.rule(post, nft.Within(nft.Source, r.Subnet), nft.NotOif(r.Link), nft.Masquerade())
		}
	}
}

// 32-bit registers, as the keys of maps are laid out in them.
const (
	reg32_0 = unix.NFT_REG32_00
	reg32_1 = unix.NFT_REG32_01
	reg32_2 = unix.NFT_REG32_02
)

// dnatByMap sends a packet where the map says for its key: (address,) protocol
// and port.
func dnatByMap(m *nftables.Set, withAddr bool) nft.Words {
	var w nft.Words
	at := uint32(reg32_0)
	if withAddr {
		w = append(w, &expr.Payload{DestRegister: at, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(nft.Dest), Len: 4})
		at++
	}
	return append(w,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: at + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32_0, DestRegister: reg32_0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32_0, RegProtoMin: reg32_1},
	)
}

// filter keeps bridges apart and unpublished ports closed.
func (b *builder) filter() {
	raw := b.chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	b.rule(raw, nft.NotIif("lo"), nft.Within(nft.Dest, nft.Loopback), nft.Drop())

	fwd := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	b.rule(fwd, nft.Known(), nft.Accept())
	for _, r := range b.nets {
		if r.ICC { // seen here only where bridged frames pass the IP hooks
			b.rule(fwd, nft.Iif(r.Link), nft.Oif(r.Link), nft.Accept())
		}
	}
	b.rule(fwd, nft.IifIn(b.internal), nft.Drop())
	b.rule(fwd, nft.OifIn(b.internal), nft.Drop())
	b.rule(fwd, nft.OifIn(b.bridges), nft.Led(), nft.Accept())
	b.rule(fwd, nft.IifIn(b.bridges), nft.OifIn(b.bridges), nft.Drop())
	b.rule(fwd, nft.IifIn(b.bridges), nft.Accept())
	b.rule(fwd, nft.OifIn(b.bridges), nft.Drop())
}

// run puts the rules back when somebody takes them away: at once where the
// kernel tells of it, else within a few seconds.
func (f *firewall) run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := watchRules(ctx, f.ns, wake); err != nil {
			f.log.Warn("changes of the firewall are noticed late", "err", err)
		}
		return nil
	})
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-wake:
			case <-time.After(checkEvery):
			}
			built, err := f.check()
			if err != nil {
				f.log.Warn("firewall rules cannot be put back yet", "err", err)
			}
			if built { // whoever keeps taking them away is not to keep us busy
				select {
				case <-ctx.Done():
				case <-time.After(checkEvery / 10):
				}
			}
		}
	})
	return g.Wait()
}

// restore puts all rules into the kernel, whatever is there.
func (f *firewall) restore() error {
	f.lock()
	defer f.unlock()
	return f.build()
}

// check compares the kernel's rules with those that were put there and puts them
// back if any are missing. It reports whether it had to.
func (f *firewall) check() (built bool, err error) {
	f.lock()
	defer f.unlock()
	if f.built != nil && f.intact() {
		return false, nil
	}
	f.log.Info("firewall rules were changed by somebody else and are put back")
	return true, f.build()
}

func (f *firewall) intact() bool {
	c, err := f.conn()
	if err != nil {
		return false
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableUser }) {
		return false
	}
	for ch, want := range f.built.rules {
		rules, err := c.GetRules(f.built.table, ch)
		if err != nil || len(rules) != want {
			return false
		}
	}
	return true
}

// protocols are the transports that ports are published for.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
