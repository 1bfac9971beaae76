// Package gossip tells which nodes answer their peers. Every node of the swarm
// runs it beside its session; it carries no state but that, and decides nothing:
// the leader confirms a suspicion before it acts (see dispatch), a node makes
// sure that its manager still answers. swarm runs it.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/skep-dev/skep/internal/cluster"
)

// Port is where every node gossips, TCP and UDP.
const Port = 7946

// How fast a lost host is noticed: it is probed within half a second, has half a
// second to answer, directly or through others, and one more to object.
const (
	probeInterval = 500 * time.Millisecond
	probeTimeout  = 250 * time.Millisecond
	suspicionMult = 2
	rejoin        = 5 * time.Second
	leaveTimeout  = 300 * time.Millisecond
)

// Config is what gossip is made of.
type Config struct {
	NodeID string
	// Addr is the address the node is known by; gossip listens there and
	// nowhere else.
	Addr netip.Addr
	// Port is Port but in tests.
	Port uint16
	// Peers returns addresses of nodes to gossip with: the managers'.
	Peers func() []netip.Addr
	// Transport stands in for the network; nil for the real one.
	Transport memberlist.Transport
	Log       *slog.Logger
}

// Gossip is one node's part. Run makes it work.
type Gossip struct {
	cfg Config

	mu       sync.Mutex
	alive    map[string]string // address by node
	dead     map[string]bool
	watchers map[chan struct{}]bool
}

// New returns a node's part in the gossip.
func New(cfg Config) *Gossip {
	if cfg.Port == 0 {
		cfg.Port = Port
	}
	return &Gossip{cfg: cfg, alive: map[string]string{}, dead: map[string]bool{}, watchers: map[chan struct{}]bool{}}
}

// Dead returns the nodes that were seen once and do not answer any more.
func (g *Gossip) Dead() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.dead))
}

// Alive returns the nodes that answer, this one included.
func (g *Gossip) Alive() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.alive))
}

// Watch returns a channel that is signalled after each change of Dead, and a
// function that ends the watch. Signals carry no data and merge.
func (g *Gossip) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers[ch] = true
	return ch, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.watchers, ch)
	}
}

func (g *Gossip) set(node, addr string, dead bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if dead {
		delete(g.alive, node)
	} else {
		g.alive[node] = addr
	}
	if g.dead[node] == dead {
		return
	}
	if dead {
		g.dead[node] = true
	} else {
		delete(g.dead, node)
	}
	for ch := range g.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// addrs returns where the living are. The library's own list may not be read
// while it gossips.
func (g *Gossip) addrs() map[string]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := map[string]bool{}
	for _, a := range g.alive {
		known[a] = true
	}
	return known
}

// Run gossips until ctx ends, and then says goodbye. key, of 32 bytes, encrypts
// and authenticates all of it. What was known of others is kept for the next Run.
func (g *Gossip) Run(ctx context.Context, key []byte) error {
	if len(key) != 32 {
		return cluster.Invalidf("gossip: a key has 32 bytes, not %d", len(key))
	}
	m, err := memberlist.Create(g.config(key))
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	ticker := time.NewTicker(rejoin)
	defer ticker.Stop()
	for {
		g.join(m)
		select {
		case <-ctx.Done():
			if err := m.Leave(leaveTimeout); err != nil { // nobody heard it, which is no matter
				g.cfg.Log.Debug("gossip: goodbye", "err", err)
			}
			return m.Shutdown()
		case <-ticker.C:
		}
	}
}

// join asks those managers in that are not members. It is done again and again,
// so that the two sides of a healed partition find each other.
func (g *Gossip) join(m *memberlist.Memberlist) {
	known := g.addrs()
	var missing []string
	for _, a := range g.cfg.Peers() {
		if a = a.Unmap(); !known[a.String()] && a != g.cfg.Addr {
			missing = append(missing, net.JoinHostPort(a.String(), strconv.Itoa(int(g.cfg.Port))))
		}
	}
	if len(missing) == 0 {
		return
	}
	if _, err := m.Join(missing); err != nil {
		g.cfg.Log.Debug("gossip: managers do not answer", "err", err)
	}
}

func (g *Gossip) config(key []byte) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.NodeID
	c.BindAddr, c.AdvertiseAddr = g.cfg.Addr.String(), g.cfg.Addr.String()
	c.BindPort, c.AdvertisePort = int(g.cfg.Port), int(g.cfg.Port)
	c.Transport = g.cfg.Transport
	c.SecretKey = key
	c.Events = events{g}
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	c.TCPTimeout = 2 * time.Second
	c.DeadNodeReclaimTime = time.Second // a node may come back with another address
	c.EnableCompression = false
	c.Logger = log.New(lines{g.cfg.Log}, "", 0)
	return c
}

// events notes who comes and goes.
type events struct{ g *Gossip }

func (e events) NotifyJoin(n *memberlist.Node)   { e.g.set(n.Name, n.Addr.String(), false) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.g.set(n.Name, n.Addr.String(), false) }
func (e events) NotifyLeave(n *memberlist.Node) {
	if n.Name != e.g.cfg.NodeID {
		e.g.set(n.Name, "", true)
	}
}

// lines passes the library's lines on: they are for debugging.
type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	l.log.Debug("gossip: " + strings.TrimSpace(string(b)))
	return len(b), nil
}

// How long a host has to answer. A kernel repeats a lost first packet only after a
// second, so that waiting longer than this asks no more often: dialling twice does.
const (
	answerWithin = 500 * time.Millisecond
	secondDial   = 150 * time.Millisecond
)

// HostAnswers reports whether there is a host at addr: it takes a connection to
// the gossip port, or refuses it, which a host that has lost power does not. It
// knows within half a second.
func HostAnswers(ctx context.Context, addr netip.Addr, port uint16) bool {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answers := make(chan bool, 1)
	dial := func() { answers <- hostAnswers(ctx, netip.AddrPortFrom(addr, port)) }
	var dials sync.WaitGroup
	defer dials.Wait()
	defer cancel()
	dials.Go(dial)
	again := time.After(secondDial)
	for under := 1; under > 0; {
		select {
		case <-again:
			dials.Go(dial)
			under++
		case yes := <-answers:
			if yes {
				return true
			}
			under--
		}
	}
	return false
}

func hostAnswers(ctx context.Context, addr netip.AddrPort) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
	}
	c.Close()
	return true
}
