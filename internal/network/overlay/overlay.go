// Package overlay owns the swarm's part of a host's data path: VXLAN devices and
// their bridges, tasks' places in them, virtual addresses, the routing mesh and
// the names of the swarm. All of it follows from the cluster.Items the node was
// told and from nothing else. It never talks to managers, hands out no
// addresses and makes no gateway bridge; package network calls it.
//
// What it leaves in the kernel is found again by name: bridges sk-<vni>, VXLAN
// devices skx-<vni>, veths skv<hash>, and the nftables tables skep-mesh (in the
// host) and skep-overlay (in a task's namespace). So a daemon that starts anew
// adopts what runs and interrupts nothing.
package overlay

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// Config is what an Overlay needs from the daemon.
type Config struct {
	Log *slog.Logger
	// DataAddr tells this node's address for VXLAN; zero while it is not known.
	DataAddr func() netip.Addr
	// GatewayBridge is the bridge that gives tasks their way out. Its addresses
	// repeat on every node, so what comes from it into the mesh gets the node's
	// ingress address as its source.
	GatewayBridge string
	// LocalBridges are further bridges whose addresses mean nothing on other
	// nodes; a name that ends in * is a prefix.
	LocalBridges []string
	// RemoveLink deletes an interface of the host, if there is one of that name;
	// who has many to delete can do it together. Nil: they are deleted singly.
	RemoveLink func(name string) error
	// NetNS is the path of the host's network namespace; "" is the caller's own.
	NetNS string
}

// Overlay is the swarm's data path on one host. Its methods may be called from
// several goroutines.
type Overlay struct {
	cfg Config
	log *slog.Logger
	ns  netns.NsHandle
	nl  *netlink.Handle

	// turn is held by whoever changes the host's part of the data path.
	turn chan struct{}
	// The following belong to the holder of turn.
	told     bool            // a complete set was applied: what is not in the model is not wanted
	dirty    map[string]bool // networks whose kernel state may lag behind their view
	sweep    bool            // devices of unknown networks are to be looked for
	mtus     map[netip.Addr]int
	mesh     *meshState // what the kernel has; nil: not known
	meshless bool       // it is known to have none
	ports    *portHolder
	wire     *wire // to the host's netfilter; nil: not open

	mu        sync.Mutex // guards the following; never held across I/O
	model     model
	views     map[string]*view
	devices   map[string]*device
	sandboxes map[string]*sandbox // by path of the namespace
}

// New makes an Overlay for a host. It changes nothing until Apply or Attach.
func New(cfg Config) (*Overlay, error) {
	ns, err := openHost(cfg.NetNS)
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	o := &Overlay{
		cfg: cfg, log: cfg.Log, ns: ns, nl: nl,
		turn:      make(chan struct{}, 1),
		dirty:     map[string]bool{},
		mtus:      map[netip.Addr]int{},
		model:     model{},
		views:     map[string]*view{},
		devices:   map[string]*device{},
		sandboxes: map[string]*sandbox{},
	}
	o.ports = &portHolder{ns: ns, log: cfg.Log, held: map[port]heldPort{}, taken: map[port]string{}}
	return o, nil
}

func openHost(path string) (netns.NsHandle, error) {
	if path != "" {
		return netns.GetFromPath(path)
	}
	return namespace.Here()
}

// Close gives sockets and handles back. The data path stays as it is.
func (o *Overlay) Close() error {
	o.turn <- struct{}{}
	defer func() { <-o.turn }()
	o.ports.releaseAll()
	o.mu.Lock()
	sandboxes := slices.Collect(maps.Values(o.sandboxes))
	o.mu.Unlock()
	for _, sb := range sandboxes {
		sb.turn <- struct{}{}
		sb.hangUp()
		<-sb.turn
	}
	o.hangUp()
	o.nl.Close()
	return o.ns.Close()
}

func (o *Overlay) take(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *Overlay) release() { <-o.turn }

// Apply brings the data path to the wanted items: the whole set when complete,
// else what changed. Kinds other than network, peer, endpoint and service are
// ignored. It returns when the kernel follows. What went wrong is tried again
// by the next Apply or by Run; applying the same items twice changes nothing.
func (o *Overlay) Apply(ctx context.Context, complete bool, items []cluster.Item) error {
	if err := o.take(ctx); err != nil {
		return err
	}
	defer o.release()
	self := o.cfg.DataAddr()
	o.mu.Lock()
	var touched map[string]bool
	o.model, touched = o.model.apply(complete, items)
	for id := range touched {
		o.dirty[id] = true
		if n := o.model[id]; n != nil && n.net != nil {
			o.views[id] = n.view(o.views[id], self)
		} else {
			delete(o.views, id)
		}
	}
	o.mu.Unlock()
	if complete {
		o.told, o.sweep = true, true
		clear(o.mtus)
	}
	return o.reconcile(ctx)
}

// reconcile brings the kernel to the views of all dirty networks: first what
// new traffic needs, then where it goes, then what nobody uses any more.
func (o *Overlay) reconcile(ctx context.Context) error {
	if len(o.dirty) == 0 && !o.sweep {
		return nil
	}
	var errs []error
	failed := map[string]bool{}
	note := func(id string, err error) {
		if err != nil {
			failed[id] = true
			errs = append(errs, err)
		}
	}
	views := o.snapshot()
	for id := range o.dirty {
		if v := views[id]; v != nil {
			note(id, o.ensureDevice(v))
		}
	}
	views = o.snapshot() // they may have learnt who left meanwhile
	if err := o.syncSandboxes(ctx, o.dirty); err != nil {
		errs = append(errs, err)
		for id := range o.dirty {
			failed[id] = true
		}
	}
	if err := o.syncMesh(views); err != nil {
		errs = append(errs, err)
		for id := range o.dirty {
			failed[id] = true
		}
	}
	for id := range o.dirty {
		if v := views[id]; v != nil {
			note(id, o.dropRemotes(v))
		} else {
			note(id, o.dropDevice(id))
		}
	}
	if o.sweep {
		if err := o.sweepDevices(views); err != nil {
			errs = append(errs, err)
		} else {
			o.sweep = false
		}
	}
	o.dirty = failed
	return errors.Join(errs...)
}

func (o *Overlay) snapshot() map[string]*view {
	o.mu.Lock()
	defer o.mu.Unlock()
	views := make(map[string]*view, len(o.views))
	for id, v := range o.views {
		views[id] = v
	}
	return views
}

// syncSandboxes brings the rules of every namespace in one of the networks up
// to date, a few at a time.
func (o *Overlay) syncSandboxes(ctx context.Context, networks map[string]bool) error {
	var group errgroup.Group
	group.SetLimit(max(2, runtime.NumCPU()))
	var mu sync.Mutex
	var errs []error
	for _, sb := range o.sandboxesOf(networks) {
		group.Go(func() error {
			if err := o.syncSandbox(ctx, sb); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // the workers collect their errors themselves
	return errors.Join(errs...)
}

// Run looks every few seconds whether somebody took parts of the data path
// away (a firewall that flushes, an operator) and puts them back, and tries
// again what failed and ports that were taken. It returns when ctx ends.
func (o *Overlay) Run(ctx context.Context) error {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for round := 1; ; round++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := o.Repair(ctx, round%10 == 0); err != nil && ctx.Err() == nil {
			o.log.Warn("overlay repair will be retried", "err", err)
		}
	}
}

// Repair looks once for missing parts and puts them back; deep looks into the
// namespaces of tasks too.
func (o *Overlay) Repair(ctx context.Context, deep bool) error {
	if err := o.take(ctx); err != nil {
		return err
	}
	defer o.release()
	if !o.told {
		return nil // what an earlier process left is not ours to judge yet
	}
	views := o.snapshot()
	for id, v := range views {
		if buildable(v) == nil && !o.deviceStands(id) {
			o.log.Warn("network device is gone, making it again", "network", id)
			o.forgetDevice(id)
			o.dirty[id] = true
		}
	}
	if o.mesh != nil && (o.wire == nil || !o.wire.stands(meshTable, "pre")) {
		o.log.Warn("routing mesh rules are gone, making them again")
		o.mesh = nil
	}
	if deep {
		o.checkSandboxes(ctx)
	}
	if err := o.reconcile(ctx); err != nil {
		return err
	}
	return o.syncMesh(views)
}

// LeaveSwarm removes every swarm network from the host and from the namespaces
// that are attached.
func (o *Overlay) LeaveSwarm(ctx context.Context) error {
	if err := o.take(ctx); err != nil {
		return err
	}
	defer o.release()
	o.mu.Lock()
	all := make(map[string]bool, len(o.views))
	for id := range o.devices {
		all[id] = true
	}
	o.model, o.views = model{}, map[string]*view{}
	var attached []*attachment
	for _, sb := range o.sandboxes {
		for _, a := range sb.att {
			attached = append(attached, a)
		}
	}
	o.mu.Unlock()
	var errs []error
	for _, a := range attached {
		errs = append(errs, o.Detach(ctx, a.network, a.id))
	}
	o.told, o.dirty, o.sweep = true, all, true
	errs = append(errs, o.reconcile(ctx), o.removeMesh())
	return errors.Join(errs...)
}

// Network is a swarm network as this host has it.
type Network struct {
	cluster.WantedNetwork
	Bridge    string // name of its bridge on this host
	MTU       int    // what containers in it may send in one packet
	Peers     []cluster.Peer
	Endpoints []cluster.Endpoint // those of this host
	Services  []cluster.VirtualService
}

// Networks lists the swarm networks this host has a part in, by id.
func (o *Overlay) Networks() []Network {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Network
	for _, id := range sortedKeys(o.views) {
		v := o.views[id]
		n := Network{WantedNetwork: v.net, Bridge: bridgeName(v.net.VNI), MTU: v.net.MTU, Peers: v.peers}
		if d := o.devices[id]; d != nil {
			n.MTU = d.mtu
		}
		for _, e := range v.endpoints {
			if e.DataAddr == v.self {
				n.Endpoints = append(n.Endpoints, *e)
			}
		}
		for _, s := range sortedKeys(v.targets) {
			n.Services = append(n.Services, *v.targets[s].svc)
		}
		out = append(out, n)
	}
	return out
}

// ignoreMissing drops errors that say the thing to remove is not there.
func ignoreMissing(err error) error {
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) || errors.Is(err, os.ErrNotExist) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
