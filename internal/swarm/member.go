package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/gossip"
	"github.com/skep-dev/skep/internal/pki"
)

// Times of a member.
const (
	gossipRetry = 5 * time.Second // after gossip could not be started
	renewWait   = 30 * time.Second
	renewTry    = 2 * time.Second
)

// member is one membership in a swarm, from joining (or a restart) to leaving
// (or a shutdown).
type member struct {
	cfg    *Config
	id     *pki.Identity
	agent  Agent
	client *dispatch.Client
	gossip *gossip.Gossip
	boot   *boot // set while this is the first manager of a new swarm, or one taken over
	force  bool  // it is taken over: the log's other members do not count

	roles  chan api.NodeRole // the wanted role; capacity 1
	keys   chan []byte       // gossip's key; capacity 1
	cancel context.CancelFunc
	done   chan struct{}
	saving chan struct{} // held while the state is written; capacity 1

	manager atomic.Pointer[manager] // while this node is a manager that works

	mu      sync.Mutex
	state   state
	session dispatch.Session
	err     error
}

// newMember puts the parts of a membership together. Nothing runs yet.
func (n *Node) newMember(st *state, id *pki.Identity) (*member, error) {
	m := &member{
		cfg: &n.cfg, id: id, state: *st, agent: n.cfg.NewAgent(st.NodeID),
		roles: make(chan api.NodeRole, 1), keys: make(chan []byte, 1), done: make(chan struct{}),
		saving: make(chan struct{}, 1),
	}
	m.gossip = gossip.New(gossip.Config{
		NodeID: st.NodeID, Addr: st.Advertise.Addr(), Port: n.cfg.GossipPort, Peers: m.managerAddrs, Log: n.cfg.Log,
	})
	var err error
	m.client, err = dispatch.NewClient(dispatch.ClientConfig{
		Identity: id, Agent: m.agent, Hello: m.hello, Streams: n.cfg.Streams, Managers: st.Managers,
		OnSession: m.told, OnConnect: m.setErr, Dial: n.cfg.Dial, Log: n.cfg.Log,
	})
	return m, err
}

// resume takes a membership up as it is on disk.
func (n *Node) resume(st *state) (*member, error) {
	id, err := pki.Load(filepath.Join(n.cfg.Dir, dirCerts))
	if err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	if p := id.Peer(); p.NodeID != st.NodeID {
		return nil, fmt.Errorf("swarm: the certificate is node %s's, the state node %s's", p.NodeID, st.NodeID)
	}
	return n.newMember(st, id)
}

// run is the membership at work.
func (m *member) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	renewer := pki.Renewer{Identity: m.id, Request: m.renew, Role: m.roles, Log: m.cfg.Log}
	g.Go(func() error { return m.agent.Run(ctx) })
	g.Go(func() error { return m.client.Run(ctx) })
	g.Go(func() error { return renewer.Run(ctx) })
	g.Go(func() error { return m.runGossip(ctx) })
	g.Go(func() error { return m.watchLeader(ctx) })
	g.Go(func() error { return m.runManager(ctx) })
	return g.Wait()
}

// hello describes this node to the leader.
func (m *member) hello() dispatch.Hello {
	d := m.cfg.Describe()
	st, _, _ := m.snapshot()
	root := m.id.Root()
	d.TLSInfo = api.TLSInfo{
		TrustRoot:           string(root.CertPEM()),
		CertIssuerSubject:   root.Certificate().RawSubject,
		CertIssuerPublicKey: root.Certificate().RawSubjectPublicKeyInfo,
	}
	return dispatch.Hello{Description: &d, Addr: st.Advertise.Addr(), DataAddr: st.Data}
}

// told takes in what the leader says about the swarm.
func (m *member) told(s dispatch.Session) {
	m.mu.Lock()
	m.session = s
	changed := len(s.Managers) > 0 && !slices.Equal(s.Managers, m.state.Managers)
	if changed {
		m.state.Managers = s.Managers
	}
	m.mu.Unlock()
	if changed {
		m.saveState()
	}
	replace(m.roles, s.Role)
	if len(s.GossipKey) > 0 {
		replace(m.keys, s.GossipKey)
	}
}

// replace puts v into a channel of capacity 1, in place of what is not read yet.
func replace[T any](ch chan T, v T) {
	select {
	case <-ch:
	default:
	}
	select {
	case ch <- v:
	default:
	}
}

// update changes the state and keeps it.
func (m *member) update(f func(*state)) {
	m.mu.Lock()
	f(&m.state)
	m.mu.Unlock()
	m.saveState()
}

func (m *member) saveState() {
	m.saving <- struct{}{} // one at a time, each with what is newest then
	defer func() { <-m.saving }()
	st, _, _ := m.snapshot()
	if m.boot != nil && !m.boot.done.Load() {
		return // a swarm that is not made yet leaves nothing to come back to
	}
	if err := st.save(m.cfg.Dir); err != nil {
		m.cfg.Log.Error("the membership could not be written down", "err", err)
	}
}

func (m *member) snapshot() (state, dispatch.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, m.session, m.err
}

func (m *member) setErr(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// managerAddrs are the managers' hosts, to gossip with.
func (m *member) managerAddrs() []netip.Addr {
	st, _, _ := m.snapshot()
	var out []netip.Addr
	for _, mgr := range st.Managers {
		host, _, err := net.SplitHostPort(mgr.Addr)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// renew has a new certificate signed: by this manager itself while it leads,
// else by the leader.
func (m *member) renew(ctx context.Context, csr []byte) ([]byte, error) {
	for end := time.Now().Add(renewWait); ; {
		if mgr := m.manager.Load(); mgr != nil {
			if cert, err := mgr.server.Renew(csr); err == nil {
				return cert, nil
			}
		}
		// Not for long at a time: this manager may come to lead meanwhile.
		once, cancel := context.WithTimeout(ctx, renewTry)
		cert, err := m.client.Renew(once, csr)
		cancel()
		again := errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded)
		if !again || ctx.Err() != nil || time.Now().After(end) {
			return cert, err
		}
	}
}

// runGossip gossips with the key the leader gave, anew when it changes.
func (m *member) runGossip(ctx context.Context) error {
	var key []byte
	for {
		running, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		if key != nil {
			go func() { ended <- m.gossip.Run(running, key) }()
		}
		next := key
		for slices.Equal(next, key) && ctx.Err() == nil {
			select {
			case next = <-m.keys:
			case err := <-ended:
				m.cfg.Log.Warn("gossip will be tried again", "err", err)
				select {
				case <-time.After(gossipRetry):
				case <-ctx.Done():
				}
				go func() { ended <- m.gossip.Run(running, key) }()
			case <-ctx.Done():
			}
		}
		stop()
		if key != nil {
			<-ended
		}
		if ctx.Err() != nil {
			return nil
		}
		key = next
	}
}

// watchLeader has the session checked when gossip gives its manager up, so that
// a node finds the next leader without waiting for its own time-out.
func (m *member) watchLeader(ctx context.Context) error {
	changed, stop := m.gossip.Watch()
	defer stop()
	for {
		select {
		case <-changed:
			if _, s, _ := m.snapshot(); slices.Contains(m.gossip.Dead(), s.Leader) {
				m.client.Check()
			}
		case <-ctx.Done():
			return nil
		}
	}
}
