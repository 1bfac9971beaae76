package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/moby/api/types/events"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/network/namespace"
	"github.com/skep-dev/skep/internal/network/overlay"
)

// Manager owns the networks of one host (one network namespace).
type Manager struct {
	cfg       Config
	log       *slog.Logger
	host      netns.NsHandle // the daemon's namespace, whichever it is
	links     *links
	pool      *namespace.Pool
	fw        *firewall
	ports     *portTable
	names     *resolver
	overlay   *overlay.Overlay
	netsDir   records
	boxesDir  records
	placesDir records
	nets      turn  // whoever makes or removes networks
	boxes     turns // whoever works on a container's sandbox, by container

	mu        sync.Mutex
	networks  map[string]*netRecord // by id
	sandboxes map[string]*sandbox   // by container id
	self      netip.Addr            // this node's address for overlay traffic, if it had to be found out
	owed      map[string]bool       // places to be given back to the swarm, by task
	applied   chan struct{}         // closed by the next Apply
	ready     map[string]bool       // swarm networks that the last Apply made or left, by id
	adopted   map[string]bool       // sandboxes of an earlier daemon that go on, by container id
}

// New brings up the networks on record in the network namespace of the calling
// thread. Sandboxes on record are left as they are until Adopt.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	host, err := namespace.Here()
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Log, host: host,
		netsDir:   records{filepath.Join(cfg.Dir, "networks")},
		boxesDir:  records{filepath.Join(cfg.ExecDir, "sandboxes")},
		placesDir: records{filepath.Join(cfg.Dir, "places")},
		pool:      namespace.NewPool(filepath.Join(cfg.ExecDir, "netns"), cfg.Prepared),
		fw:        newFirewall(host, cfg.Log), ports: newPortTable(host),
		nets: newTurn(), networks: map[string]*netRecord{}, sandboxes: map[string]*sandbox{},
		adopted: map[string]bool{}, owed: map[string]bool{}, applied: make(chan struct{})}
	m.names = newResolver(m, host)
	m.overlay, err = overlay.New(overlay.Config{Log: cfg.Log, DataAddr: m.dataAddr,
		GatewayBridge: gatewayLink, LocalBridges: []string{cfg.Bridge, "br-*"},
		RemoveLink: func(name string) error { return m.links.remove(name) }})
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return m, nil
}

// open reads the records and makes the host agree with them.
func (m *Manager) open() error {
	if err := os.MkdirAll(filepath.Join(m.cfg.ExecDir, "netns"), 0o711); err != nil {
		return err
	}
	err := m.netsDir.load(func(data []byte) error {
		var r netRecord
		err := json.Unmarshal(data, &r)
		m.networks[r.ID] = &r
		return err
	})
	if err != nil {
		return err
	}
	err = m.boxesDir.load(func(data []byte) error {
		var s sandbox
		err := json.Unmarshal(data, &s)
		m.sandboxes[s.ContainerID] = &s
		return err
	})
	if err != nil {
		return err
	}
	if err := m.loadDebts(); err != nil {
		return err
	}
	if m.links, err = newLinks(m.host); err != nil {
		return err
	}
	if err := m.links.prepareHost(); err != nil {
		return err
	}
	if err := m.predefined(); err != nil {
		return err
	}
	for _, r := range m.networks {
		if r.Driver != driverBridge {
			continue
		}
		if _, err := m.links.bridge(r); err != nil {
			return fmt.Errorf("network %s: %w", r.Name, err)
		}
		m.fw.nets[r.Link] = r
	}
	return errors.Join(m.fw.restore(), m.sweep())
}

// sweep removes what a crash left: interfaces and namespaces of no sandbox on record.
func (m *Manager) sweep() error {
	bridges, links, spaces := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, r := range m.networks {
		bridges[r.Link] = r.Link != ""
	}
	for _, s := range m.sandboxes {
		spaces[s.NetNS] = true
		for _, ep := range s.Endpoints {
			links[ep.HostLink] = true
		}
	}
	return errors.Join(m.links.sweep(bridges, links), m.pool.Sweep(spaces))
}

// Run does what goes on in the background until ctx ends: namespaces are kept
// ready, rules that were taken away put back, names answered. Containers and
// their networks stay when it returns.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.pool.Run(ctx) })
	g.Go(func() error { return m.fw.run(ctx) })
	g.Go(func() error { return m.overlay.Run(ctx) })
	g.Go(func() error { return m.payDebts(ctx) })
	err := g.Wait()
	m.names.closeAll()
	return errors.Join(err, m.ports.closeAll(), m.overlay.Close())
}

// publish tells of a network made or removed. Of containers that are connected
// and disconnected engine tells, which knows them.
func (m *Manager) publish(action events.Action, r *netRecord) {
	if m.cfg.Publish != nil {
		m.cfg.Publish(events.NetworkEventType, action,
			events.Actor{ID: r.ID, Attributes: map[string]string{"name": r.Name, "type": r.Driver}})
	}
}

// sandbox returns the record of a container's sandbox, or nil.
func (m *Manager) sandbox(containerID string) *sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sandboxes[containerID]
}

// setSandbox puts a record in force, or forgets it when s is nil.
func (m *Manager) setSandbox(containerID string, s *sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s == nil {
		delete(m.sandboxes, containerID)
		return
	}
	m.sandboxes[containerID] = s
}

// taken returns the addresses in use in a network. m.mu is held.
func (m *Manager) taken(networkID string) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, s := range m.sandboxes {
		if ep := s.in(networkID); ep != nil {
			out[ep.Addr.Addr()] = true
		}
	}
	return out
}

// turn is held by one goroutine at a time, across I/O.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// turns are turns by key; the zero value is ready.
type turns struct {
	mu    sync.Mutex
	byKey map[string]*waiting
}

type waiting struct {
	turn
	users int
}

// take waits for the key's turn and returns what gives it back.
func (t *turns) take(ctx context.Context, key string) (give func(), err error) {
	t.mu.Lock()
	if t.byKey == nil {
		t.byKey = map[string]*waiting{}
	}
	w := t.byKey[key]
	if w == nil {
		w = &waiting{turn: newTurn()}
		t.byKey[key] = w
	}
	w.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if w.users--; w.users == 0 {
			delete(t.byKey, key)
		}
	}
	if err := w.turn.take(ctx); err != nil {
		leave()
		return nil, err
	}
	return func() { w.turn.give(); leave() }, nil
}
