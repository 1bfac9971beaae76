package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/skep-dev/skep/internal/network/nft"
)

// meshTable is the routing mesh's table in the host's namespace.
const meshTable = "skep-mesh"

// meshState is the routing mesh as the rules have it.
type meshState struct {
	bridge string
	addr   netip.Addr // this node's own in the ingress network
	subnet netip.Prefix
	ports  map[port]publication
	gone   map[netip.Addr]bool
}

// wantedMesh derives the mesh from the ingress network's view; nil if there is
// none. Ports that another program holds are left out.
func (o *Overlay) wantedMesh(views map[string]*view) *meshState {
	for _, id := range sortedKeys(views) {
		v := views[id]
		if !v.net.Ingress || !v.net.NodeAddr.Is4() {
			continue
		}
		w := &meshState{
			bridge: bridgeName(v.net.VNI), addr: v.net.NodeAddr, subnet: v.net.Subnet,
			ports: v.published(), gone: map[netip.Addr]bool{},
		}
		for _, a := range v.gone {
			w.gone[a] = true
		}
		return w
	}
	return nil
}

// syncMesh brings the host's rules for published ports up to date in one
// transaction. A port is held before it is served and served no more before it
// is let go.
func (o *Overlay) syncMesh(views map[string]*view) error {
	want := o.wantedMesh(views)
	if want == nil {
		return o.removeMesh()
	}
	o.ports.acquire(want.ports)
	for p := range want.ports {
		if o.ports.taken[p] != "" {
			delete(want.ports, p)
		}
	}
	if was := o.mesh; was == nil || !was.same(want) {
		if err := o.changeMesh(was, want); err != nil {
			return fmt.Errorf("routing mesh: %w", err)
		}
	}
	o.ports.release(want.ports)
	return nil
}

func (m *meshState) same(w *meshState) bool {
	return m.sameBase(w) && mapsEqual(m.ports, w.ports) && mapsEqual(m.gone, w.gone)
}

func (m *meshState) sameBase(w *meshState) bool {
	return m.bridge == w.bridge && m.addr == w.addr && m.subnet == w.subnet
}

func (o *Overlay) changeMesh(was, want *meshState) error {
	b, err := o.hostBatch()
	if err != nil {
		return err
	}
	o.mesh, o.meshless = nil, false // not known, should this fail
	if was == nil || !was.sameBase(want) {
		b.installMesh(want, append(slices.Clone(o.cfg.LocalBridges), o.cfg.GatewayBridge))
	} else {
		t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: meshTable}
		b.changePorts(t, was.ports, want.ports)
		b.changeGone(goneSet(t), was.gone, want.gone)
	}
	if err := b.commit(); err != nil {
		o.hangUp()
		return err
	}
	o.mesh = want
	if stale := staleMeshFlows(was, want); stale != nil {
		return o.wire.forget(stale, func(a netip.Addr) bool { return !want.gone[a] })
	}
	return nil
}

// hostBatch begins a transaction in the host's namespace.
func (o *Overlay) hostBatch() (*batch, error) {
	if o.wire == nil {
		w, err := dial(o.ns)
		if err != nil {
			return nil, err
		}
		o.wire = w
	}
	return o.wire.batch(), nil
}

func (o *Overlay) hangUp() {
	o.wire.close()
	o.wire = nil
}

// removeMesh takes the mesh away, an earlier process's too.
func (o *Overlay) removeMesh() error {
	if o.meshless || !o.told {
		return nil
	}
	b, err := o.hostBatch()
	if err != nil {
		return err
	}
	b.dropTable(nftables.TableFamilyIPv4, meshTable)
	if err := b.commit(); err != nil {
		o.hangUp()
		return fmt.Errorf("routing mesh: %w", err)
	}
	o.mesh, o.meshless = nil, true
	o.ports.release(nil)
	return nil
}

var portType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)

func portMap(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "ports", IsMap: true, Concatenation: true, KeyType: portType, DataType: nftables.TypeVerdict}
}

func heldSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: "held", Concatenation: true, KeyType: portType}
}

// installMesh puts the whole of the mesh in the place of what was. localBridges
// are those whose addresses mean nothing on other nodes.
func (b *batch) installMesh(w *meshState, localBridges []string) {
	t := b.freshTable(nftables.TableFamilyIPv4, meshTable)
	ports, held, gone := portMap(t), heldSet(t), goneSet(t)
	b.set(ports, nil)
	b.set(held, nil)
	b.set(gone, nil)
	// The ingress bridge routes 127.0.0.0/8, for the host's own connections;
	// nobody may come in by that.
	b.rule(b.base(t, "raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, prioRaw),
		nft.NotIif("lo"), nft.Within(nft.Dest, nft.Loopback), nft.Drop())
	b.rule(b.base(t, "pre", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, prioDNAT), nft.ToHost(), portIn(ports))
	b.rule(b.base(t, "out", nftables.ChainTypeNAT, nftables.ChainHookOutput, prioDNAT), nft.ToHost(), portIn(ports))
	post := b.base(t, "post", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioSNAT)
	b.rule(post, nft.Oif(w.bridge), nft.Within(nft.Source, nft.Loopback), nft.From(w.addr))
	for _, name := range localBridges {
		if name != "" {
			b.rule(post, nft.IifLike(name), nft.Oif(w.bridge), nft.Led(), nft.From(w.addr))
		}
	}
	// A port without a serving task is refused, and the daemon's sockets, which
	// only hold the port, are never reached.
	b.refuse(b.base(t, "in", nftables.ChainTypeFilter, nftables.ChainHookInput, prioFilter),
		append(nft.Asking(), portIn(held)...), icmpPort)
	b.refuse(b.base(t, "gone-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, prioFilter),
		append(nft.Oif(w.bridge), destIn(gone)...), icmpHost)
	// At the output the interface is still the one before translation.
	b.refuse(b.base(t, "gone-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, prioFilter), destIn(gone), icmpHost)
	b.changePorts(t, nil, w.ports)
	b.changeGone(goneSet(t), nil, w.gone)
}

// changePorts gives each published port a chain of its own that chooses the
// back end, so that a change touches that chain alone.
func (b *batch) changePorts(t *nftables.Table, was, now map[port]publication) {
	ports, held := portMap(t), heldSet(t)
	chain := func(p port) *nftables.Chain { return &nftables.Chain{Table: t, Name: p.String()} }
	for p := range was {
		if _, stays := now[p]; stays {
			continue
		}
		b.del(ports, gotoChain(p.key(), p.String()))
		b.del(held, nftables.SetElement{Key: p.key()})
		b.FlushChain(chain(p))
		b.DelChain(chain(p))
	}
	for p, to := range now {
		old, had := was[p]
		switch {
		case !had:
			b.AddChain(chain(p))
		case old.port == to.port && slices.Equal(old.backends, to.backends):
			continue
		default:
			b.FlushChain(chain(p))
		}
		// An empty chain lets the packet on, to be refused at the input.
		if len(to.backends) > 0 {
			b.balance(chain(p), to.backends, to.port)
		}
		if !had {
			b.add(ports, gotoChain(p.key(), p.String()))
			b.add(held, nftables.SetElement{Key: p.key()})
		}
	}
}
