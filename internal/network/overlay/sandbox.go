package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
	"github.com/skep-dev/skep/internal/network/nft"
)

// taskTable is our table in a task's namespace, for the families ip and netdev.
const taskTable = "skep-overlay"

// sandbox is a container's network namespace that is in at least one network.
type sandbox struct {
	path string
	id   namespace.ID
	turn chan struct{}          // held by whoever changes the namespace's rules
	att  map[string]*attachment // by network; guarded by Overlay.mu
	// These two belong to the holder of turn.
	have *taskRules // what the kernel has; nil: not known
	wire *wire      // nil: not open
	lost bool       // its rules were made more than once
}

// taskRules is what the tables in a task's namespace consist of.
type taskRules struct {
	subnets []netip.Prefix     // of the networks, sorted
	vips    map[string]*target // by network/service
	gone    map[netip.Addr]bool
	ingress ingressRules
	// tracked: the rules stood before the first packet, so the set of UDP's
	// destinations is whole.
	tracked bool
}

// ingressRules let a task on the ingress network answer its clients through
// the node they came by. Zero: the task is not on it.
type ingressRules struct {
	ifName  string
	addr    netip.Addr
	gateway GatewayInfo
}

func (o *Overlay) sandboxesOf(networks map[string]bool) []*sandbox {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*sandbox
	for _, path := range sortedKeys(o.sandboxes) {
		sb := o.sandboxes[path]
		for id := range sb.att {
			if networks[id] {
				out = append(out, sb)
				break
			}
		}
	}
	return out
}

// wantedRules derives a namespace's rules from the views of its networks. It
// reports false while one of them is not known: after a restart, until the
// manager has told it, what the last process left goes on.
func (o *Overlay) wantedRules(sb *sandbox) (*taskRules, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := &taskRules{vips: map[string]*target{}, gone: map[netip.Addr]bool{}, tracked: !sb.lost}
	if len(sb.att) == 0 {
		return nil, false
	}
	for id, a := range sb.att {
		v := o.views[id]
		if v == nil {
			return nil, false
		}
		w.tracked = w.tracked && !a.adopted
		for _, g := range v.gone {
			w.gone[g] = true
		}
		if v.net.Ingress {
			w.ingress = ingressRules{ifName: a.ifName, addr: a.addr}
			if a.gateway != nil {
				w.ingress.gateway = *a.gateway
			}
			continue
		}
		w.subnets = append(w.subnets, v.net.Subnet)
		for service, t := range v.targets {
			if t.svc.VIP.Is4() {
				w.vips[id+"/"+service] = t
			}
		}
	}
	slices.SortFunc(w.subnets, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return w, true
}

// syncSandbox brings a namespace's rules up to date in one transaction, if
// anything changed. A namespace that has ended needs none.
func (o *Overlay) syncSandbox(ctx context.Context, sb *sandbox) error {
	select {
	case sb.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-sb.turn }()
	want, known := o.wantedRules(sb)
	if !known || sb.have != nil && sb.have.same(want) {
		return nil
	}
	if err := sb.change(want); err != nil {
		sb.hangUp()
		return fmt.Errorf("namespace %s: %w", sb.path, err)
	}
	return nil
}

func (sb *sandbox) change(want *taskRules) error {
	there, err := sb.dial()
	if err != nil || !there {
		return err
	}
	was := sb.have
	b := sb.wire.batch()
	if was == nil {
		b.installTask(want)
	} else {
		b.changeTask(was, want)
	}
	if err := b.commit(); err != nil {
		return err
	}
	sb.have = want
	stale, of := staleVIPFlows(was, want)
	if stale == nil || want.tracked && !sb.wire.anyUDP(of) {
		return nil
	}
	return sb.wire.forget(stale, func(a netip.Addr) bool { return !want.gone[a] })
}

// anyUDP says whether UDP was ever sent to one of the addresses. Finding flows
// makes the kernel walk a table that is the whole machine's, some milliseconds;
// most services never see UDP.
func (w *wire) anyUDP(of map[netip.Addr][]netip.Addr) bool {
	seen, err := w.nft.GetSetElements(udpSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: taskTable}))
	if err != nil {
		return true
	}
	for _, e := range seen {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			if _, ours := of[a]; ours {
				return true
			}
		}
	}
	return false
}

// dial opens the wire to the namespace; false if that has ended.
func (sb *sandbox) dial() (bool, error) {
	if sb.wire != nil {
		return true, nil
	}
	ns, id, err := namespace.Open(sb.path)
	defer namespace.Close(ns)
	if err != nil || id != sb.id {
		return false, ignoreMissing(err)
	}
	sb.wire, err = dial(ns)
	return err == nil, err
}

// hangUp forgets what is known of the namespace's rules.
func (sb *sandbox) hangUp() {
	sb.wire.close()
	sb.lost = true
	sb.wire, sb.have = nil, nil
}

func (r *taskRules) same(w *taskRules) bool {
	return r.ingress == w.ingress && slices.Equal(r.subnets, w.subnets) && mapsEqual(r.vips, w.vips) && mapsEqual(r.gone, w.gone)
}

func mapsEqual[K, V comparable](a, b map[K]V) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}

func vipMap(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "vips", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
}

func goneSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "gone", KeyType: nftables.TypeIPAddr}
}

// udpSet holds where UDP has gone, as far as it is in one of the networks.
func udpSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "udp", Dynamic: true, Size: 1 << 16, KeyType: nftables.TypeIPAddr}
}

// steer fills the chain that new connections go through.
func (b *batch) steer(c *nftables.Chain, vips, udp *nftables.Set, subnets []netip.Prefix) {
	for _, p := range subnets {
		b.rule(c, nft.Transport(unix.IPPROTO_UDP), nft.Within(nft.Dest, p), nft.Words{
			nft.Addr(nft.Dest),
			&expr.Dynset{SrcRegKey: 1, SetID: udp.ID, SetName: udp.Name, Operation: unix.NFT_DYNSET_OP_ADD},
		})
	}
	b.rule(c, destIn(vips))
}

// installTask puts the whole of a namespace's rules in the place of what was.
func (b *batch) installTask(w *taskRules) {
	t := b.freshTable(nftables.TableFamilyIPv4, taskTable)
	vips, udp, gone := vipMap(t), udpSet(t), goneSet(t)
	b.set(vips, nil)
	b.set(udp, nil)
	b.set(gone, nil)
	b.steer(b.base(t, "vip-out", nftables.ChainTypeNAT, nftables.ChainHookOutput, prioDNAT), vips, udp, w.subnets)
	b.refuse(b.base(t, "gone-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, prioFilter), destIn(gone), icmpHost)
	b.changeVIPs(t, &taskRules{}, w)
	b.changeGone(goneSet(t), nil, w.gone)
	b.dropTable(nftables.TableFamilyNetdev, taskTable)
	if w.ingress.ifName != "" {
		b.installIngress(t, w.ingress)
	}
}

// changeTask turns one set of rules into another by what differs.
func (b *batch) changeTask(was, w *taskRules) {
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: taskTable}
	if was.ingress != w.ingress {
		b.removeIngress(t, was.ingress)
		if w.ingress.ifName != "" {
			b.installIngress(t, w.ingress)
		}
	}
	if !slices.Equal(was.subnets, w.subnets) {
		c := &nftables.Chain{Table: t, Name: "vip-out"}
		b.FlushChain(c)
		b.steer(c, vipMap(t), udpSet(t), w.subnets)
	}
	b.changeVIPs(t, was, w)
	b.changeGone(goneSet(t), was.gone, w.gone)
}

// changeVIPs gives each service's address a chain of its own that chooses the
// back end, so that a change touches that chain alone.
func (b *batch) changeVIPs(t *nftables.Table, was, w *taskRules) {
	vips := vipMap(t)
	chain := func(x *target) *nftables.Chain {
		return &nftables.Chain{Table: t, Name: "vip-" + x.svc.VIP.String()}
	}
	element := func(x *target) nftables.SetElement {
		return gotoChain(x.svc.VIP.AsSlice(), chain(x).Name)
	}
	// An address may pass from one service to another: first all that go.
	for _, id := range sortedKeys(was.vips) {
		if old, now := was.vips[id], w.vips[id]; now == nil || now.svc.VIP != old.svc.VIP {
			b.del(vips, element(old))
			b.FlushChain(chain(old))
			b.DelChain(chain(old))
		}
	}
	for _, id := range sortedKeys(w.vips) {
		old, now := was.vips[id], w.vips[id]
		fresh := old == nil || old.svc.VIP != now.svc.VIP
		switch {
		case fresh:
			b.AddChain(chain(now))
		case slices.Equal(old.backends, now.backends):
			continue
		default:
			b.FlushChain(chain(now))
		}
		b.balance(chain(now), now.backends, 0)
		if fresh {
			b.add(vips, element(now))
		}
	}
}

func (b *batch) changeGone(set *nftables.Set, was, now map[netip.Addr]bool) {
	for a := range was {
		if !now[a] {
			b.del(set, element(a))
		}
	}
	for a := range now {
		if !was[a] {
			b.add(set, element(a))
		}
	}
}

// installIngress marks each connection that comes in with the low four bytes
// of the MAC it came from, which are the address of the node it came through,
// and sends the answers back to that MAC. So the client's own address arrives
// at the task and no rule depends on how many nodes there are.
func (b *batch) installIngress(t *nftables.Table, in ingressRules) {
	const macLow = 2 // the MAC's bytes after 02:42
	zero := make([]byte, 4)
	setMark := nft.Words{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6 + macLow, Len: 4},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}
	// Every packet, not only a connection's first: the way may change.
	b.rule(b.base(t, "ingress-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioMangle),
		nft.Iif(in.ifName), nft.Asking(), setMark)
	b.rule(b.base(t, "ingress-out", nftables.ChainTypeRoute, nftables.ChainHookOutput, prioMangle),
		nft.Answering(), nft.Words{
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, nft.Neq(zero),
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		})
	if in.leaves() {
		b.rule(b.base(t, "ingress-post", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioSNAT),
			nft.Oif(in.gateway.IfName), nft.Is(nft.Source, in.addr), nft.From(in.gateway.Addr))
	}
	// Connection tracking's values cannot be read here: the packet's mark
	// carries it.
	dev := b.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: taskTable})
	b.rule(b.AddChain(&nftables.Chain{
		Name: "ingress-egress", Table: dev, Type: nftables.ChainTypeFilter, Device: in.ifName,
		Hooknum:  nftables.ChainHookRef(unix.NF_NETDEV_EGRESS),
		Priority: nftables.ChainPriorityRef(netdevFirst),
	}), nft.Words{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, nft.Neq(binaryutil.NativeEndian.PutUint32(0)),
		&expr.Payload{OperationType: expr.PayloadWrite, Base: expr.PayloadBaseLLHeader, Offset: macLow, Len: 4, SourceRegister: 1},
	})
}

// leaves says whether the task has a way out whose packets need its address.
func (in ingressRules) leaves() bool { return in.gateway.IfName != "" && in.gateway.Addr.Is4() }

func (b *batch) removeIngress(t *nftables.Table, in ingressRules) {
	if in.ifName == "" {
		return
	}
	chains := []string{"ingress-in", "ingress-out"}
	if in.leaves() {
		chains = append(chains, "ingress-post")
	}
	for _, name := range chains {
		c := &nftables.Chain{Table: t, Name: name}
		b.FlushChain(c)
		b.DelChain(c)
	}
	b.dropTable(nftables.TableFamilyNetdev, taskTable)
}

// clearSandbox removes our tables from a namespace that is in no network any
// more, and forgets it. One that meanwhile joined another is left alone.
func (o *Overlay) clearSandbox(ctx context.Context, sb *sandbox) error {
	select {
	case sb.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-sb.turn }()
	o.mu.Lock()
	used := len(sb.att) > 0
	o.mu.Unlock()
	if used {
		return nil
	}
	if err := sb.dropTables(); err != nil {
		return fmt.Errorf("namespace %s: %w", sb.path, err)
	}
	o.forgetSandbox(sb)
	return nil
}

func (sb *sandbox) dropTables() error {
	defer sb.hangUp()
	there, err := sb.dial()
	if err != nil || !there {
		return err
	}
	b := sb.wire.batch()
	b.dropTable(nftables.TableFamilyIPv4, taskTable)
	b.dropTable(nftables.TableFamilyNetdev, taskTable)
	return b.commit()
}

func (o *Overlay) forgetSandbox(sb *sandbox) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(sb.att) == 0 && o.sandboxes[sb.path] == sb {
		delete(o.sandboxes, sb.path)
	}
}

// checkSandboxes forgets what it knew of namespaces whose rules were flushed,
// so that the next pass makes them again.
func (o *Overlay) checkSandboxes(ctx context.Context) {
	o.mu.Lock()
	all := map[string]bool{}
	for id := range o.views {
		all[id] = true
	}
	o.mu.Unlock()
	for _, sb := range o.sandboxesOf(all) {
		if ctx.Err() != nil {
			return
		}
		if o.sandboxStands(ctx, sb) {
			continue
		}
		o.log.Warn("rules in a container are gone, making them again", "namespace", sb.path)
		o.mu.Lock()
		for id := range sb.att {
			o.dirty[id] = true
		}
		o.mu.Unlock()
	}
}

// sandboxStands looks at the rules in a namespace. One that ended without a
// word is let go: our wire would keep it alive.
func (o *Overlay) sandboxStands(ctx context.Context, sb *sandbox) bool {
	select {
	case sb.turn <- struct{}{}:
	case <-ctx.Done():
		return true
	}
	defer func() { <-sb.turn }()
	ns, id, err := namespace.Open(sb.path)
	namespace.Close(ns)
	if err != nil || id != sb.id {
		sb.hangUp()
		return true
	}
	if sb.have == nil || sb.wire == nil || sb.wire.stands(taskTable, "vip-out") {
		return true
	}
	sb.hangUp()
	return false
}
