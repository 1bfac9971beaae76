// Package swarm is this host's membership in a swarm: making one, joining,
// leaving, changing its role, and taking it up again after a restart. It puts
// the parts together: on every node the session with the leader, the agent and
// the gossip; on managers the log, the store, the leader's loops and control. It
// decides nothing about services. The daemon makes one Node and runs it.
package swarm

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/dispatch"
)

// Agent runs the node's tasks; agent.Agent is the real one. Run and Leave do not
// overlap.
type Agent interface {
	dispatch.Agent
	// Run takes up the tasks found on disk and serves until ctx ends.
	Run(ctx context.Context) error
	// Leave removes every task and network of the swarm from the host.
	Leave(ctx context.Context) error
}

// Config is what a Node is made of. All but those that say so are required.
type Config struct {
	// Dir is where the membership is kept, <data-root>/swarm.
	Dir string
	// NewAgent makes the agent of a node with this id.
	NewAgent func(nodeID string) Agent
	// Describe says what this host is; it is asked at each new session.
	Describe func() api.NodeDescription
	// Streams answer what managers ask of this node, by kind ("logs"). Optional.
	Streams map[string]dispatch.StreamHandler
	// Founded is signalled, without waiting, when this node has begun a swarm and
	// its state can be read, before Init returns. Its capacity is 1. Optional.
	Founded chan<- struct{}
	// DefaultAdvertise is the daemon's --swarm-default-advertise-addr. Optional.
	DefaultAdvertise string
	// Host, Listen, Dial and GossipPort stand in for the real machine in tests.
	Host       Host
	Listen     func(addr string) (net.Listener, error)
	Dial       dispatch.Dialer
	GossipPort uint16
	// Tick is Raft's; 0 is its default.
	Tick time.Duration
	Log  *slog.Logger
}

// Docker's words.
var (
	errNoSwarm      = cluster.Unavailablef("This node is not part of a swarm")
	errNotInSwarm   = cluster.Unavailablef("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	errWorker       = cluster.Unavailablef("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	errAlready      = cluster.Unavailablef("This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.")
	errNotLocked    = cluster.Conflictf("swarm is not locked")
	errShuttingDown = cluster.Unavailablef("the daemon is shutting down")
)

// Node is this host's membership. Run owns it: what changes the membership is
// done one thing at a time by Run's goroutine; what only looks never waits.
type Node struct {
	cfg  Config
	ops  chan func(context.Context)
	done chan struct{}
	cur  atomic.Pointer[member] // nil: in no swarm
}

// New returns the host's membership. Run must be called for it to do anything.
func New(cfg Config) *Node {
	if cfg.Host == nil {
		cfg.Host = thisHost{}
	}
	if cfg.Listen == nil {
		cfg.Listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	if cfg.Dial == nil {
		cfg.Dial = dispatch.DialTCP
	}
	return &Node{cfg: cfg, ops: make(chan func(context.Context)), done: make(chan struct{})}
}

// Run takes up the membership found on disk, if there is one, and serves until
// ctx ends. Tasks go on without it.
func (n *Node) Run(ctx context.Context) error {
	defer close(n.done)
	st, err := loadState(n.cfg.Dir)
	if err != nil {
		return err
	}
	if st != nil {
		m, err := n.resume(st)
		if err != nil {
			return err
		}
		n.begin(ctx, m)
	}
	for {
		select {
		case op := <-n.ops:
			op(ctx)
		case <-ctx.Done():
			if m := n.cur.Load(); m != nil {
				<-m.done
			}
			return nil
		}
	}
}

// do has Run's goroutine run f, and waits for it even if ctx ends: a change of
// membership is not broken off half way.
func (n *Node) do(ctx context.Context, f func(context.Context) error) error {
	result := make(chan error, 1)
	select {
	case n.ops <- func(runCtx context.Context) { result <- f(runCtx) }:
	case <-n.done:
		return errShuttingDown
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-result
}

// begin starts a membership.
func (n *Node) begin(ctx context.Context, m *member) {
	ctx, m.cancel = context.WithCancel(ctx)
	n.cur.Store(m)
	go func() {
		defer close(m.done)
		if err := m.run(ctx); err != nil && ctx.Err() == nil {
			m.setErr(err)
			n.cfg.Log.Error("the membership in the swarm has ended", "err", err)
		}
	}()
}

// end stops the membership and waits for it.
func (n *Node) end(m *member) {
	m.cancel()
	<-m.done
}

// manager returns the manager part, or why there is none.
func (n *Node) manager() (*manager, error) {
	m := n.cur.Load()
	if m == nil {
		return nil, errNotInSwarm
	}
	if mgr := m.manager.Load(); mgr != nil {
		return mgr, nil
	}
	return nil, errWorker
}

// Unlock gives a locked manager the key to its log.
func (n *Node) Unlock(context.Context, string) error {
	if n.cur.Load() == nil {
		return errNoSwarm
	}
	return errNotLocked // autolock is refused by init and update
}

// NodeID returns this node's id, "" in no swarm.
func (n *Node) NodeID() string {
	if m := n.cur.Load(); m != nil {
		return m.id.Peer().NodeID
	}
	return ""
}

// DataAddr returns the address this node receives overlay traffic at, the zero
// Addr in no swarm.
func (n *Node) DataAddr() netip.Addr {
	m := n.cur.Load()
	if m == nil {
		return netip.Addr{}
	}
	st, _, _ := m.snapshot()
	return st.Data
}

// Open has a node answer a request and returns what it sends; any manager can
// ask. See dispatch.Server.Open.
func (n *Node) Open(ctx context.Context, nodeID, kind string, req any) (dispatch.Frames, error) {
	mgr, err := n.manager()
	if err != nil {
		return nil, err
	}
	return mgr.server.Open(ctx, nodeID, kind, req)
}

// Attach gives a plain container a place in an attachable network.
func (n *Node) Attach(ctx context.Context, req dispatch.AttachRequest) (dispatch.AttachReply, error) {
	m := n.cur.Load()
	if m == nil {
		return dispatch.AttachReply{}, cluster.NotFoundf("network %s not found", req.Network)
	}
	return m.client.Attach(ctx, req)
}

// Detach gives a container's place back. Idempotent.
func (n *Node) Detach(ctx context.Context, taskID string) error {
	m := n.cur.Load()
	if m == nil {
		return nil
	}
	return m.client.Detach(ctx, taskID)
}
