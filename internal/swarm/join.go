package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/pki"
)

// Times of a join.
const (
	joinDial = 5 * time.Second  // for a manager to answer
	joinWait = 20 * time.Second // for the session, and the Raft group
)

// detected is an address that nobody named.
type detected = netip.Addr

// Join makes this host a node of the swarm that the token is of. What is wrong
// with token or address is said at once, and nothing is left behind.
func (n *Node) Join(ctx context.Context, req api.JoinRequest) error {
	return n.do(ctx, func(run context.Context) error { return n.join(run, req) })
}

func (n *Node) join(run context.Context, req api.JoinRequest) error {
	if n.cur.Load() != nil {
		return errAlready
	}
	if req.JoinToken == "" {
		return cluster.Invalidf("rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")
	}
	if _, err := pki.ParseToken(req.JoinToken); err != nil {
		return err
	}
	if len(req.RemoteAddrs) == 0 {
		return cluster.Invalidf("at least 1 RemoteAddr is required to join")
	}
	avail, err := cluster.ParseAvailability(req.Availability)
	if err != nil {
		return err
	}
	// Bad addresses are refused before anybody is asked; where none is named it
	// is the one that managers are reached from.
	if _, err := n.chooser().choose(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr, netip.IPv4Unspecified()); err != nil {
		return err
	}
	got, from, err := n.askIn(run, req, avail)
	if err != nil {
		return err
	}
	addrs, err := n.chooser().choose(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr, from)
	if err != nil {
		return err
	}
	m, err := n.joined(got, addrs)
	if err != nil {
		return joinErr(err, wipe(n.cfg.Dir))
	}
	n.begin(run, m)
	if err := m.settled(run); err != nil {
		m.goodbye(run, m.manager.Load())
		n.end(m)
		n.cur.Store(nil)
		return errors.Join(err, wipe(n.cfg.Dir))
	}
	return nil
}

// askIn asks the managers named, one after another, to be let in, and notes the
// address it asked from.
func (n *Node) askIn(ctx context.Context, req api.JoinRequest, avail api.NodeAvailability) (*dispatch.Issued, netip.Addr, error) {
	var mu sync.Mutex
	var from netip.Addr
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := n.cfg.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		if ap, perr := netip.ParseAddrPort(c.LocalAddr().String()); perr == nil {
			mu.Lock()
			from = ap.Addr().Unmap()
			mu.Unlock()
		}
		return c, nil
	}
	var last error
	for _, addr := range req.RemoteAddrs {
		addr, err := withPort(addr)
		if err != nil {
			return nil, from, err
		}
		actx, cancel := context.WithTimeout(ctx, joinDial)
		got, err := dispatch.JoinSwarm(actx, dial, addr, req.JoinToken, avail)
		cancel()
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			return got, from, nil
		}
		last = dialWords(err, addr)
	}
	return nil, from, last
}

// dialWords says in Docker's words that a manager could not be reached.
func dialWords(err error, addr string) error {
	var op *net.OpError
	var ne net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return cluster.Unavailablef("Timeout was reached before node joined. No manager answers at %s; this node is in no swarm.", addr)
	case errors.As(err, &op) && op.Op == "dial":
		return cluster.Unavailablef("rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing %v\"", err)
	}
	return err
}

// withPort completes a manager's address with the default port.
func withPort(addr string) (string, error) {
	bad := cluster.Invalidf("remote address %q must be an address or a host's name, with an optional port", addr)
	host, port, err := split(addr, bad)
	if err != nil || host == "" {
		return "", bad
	}
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// joined writes down what the swarm has issued.
func (n *Node) joined(got *dispatch.Issued, addrs addresses) (*member, error) {
	if err := wipe(n.cfg.Dir); err != nil { // of a join that was broken off
		return nil, err
	}
	id, err := pki.NewIdentity(filepath.Join(n.cfg.Dir, dirCerts), got.Root, got.Cert, got.Key)
	if err != nil {
		return nil, err
	}
	if p := id.Peer(); p.NodeID != got.NodeID {
		return nil, fmt.Errorf("the certificate names node %s, the manager %s", p.NodeID, got.NodeID)
	}
	if err := id.Save(); err != nil {
		return nil, err
	}
	st := &state{NodeID: got.NodeID, addresses: addrs, Managers: []dispatch.Manager{{Addr: got.Manager}}}
	if err := st.save(n.cfg.Dir); err != nil {
		return nil, err
	}
	return n.newMember(st, id)
}

// settled waits until a new node has its session and, as a manager, is in the
// Raft group.
func (m *member) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	for {
		st, session, err := m.snapshot()
		if session.Leader != "" && (m.id.Peer().Role != api.NodeRoleManager || st.Joined != "") {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-m.done:
			return fmt.Errorf("the swarm was left again: %w", orShutdown(err))
		case <-ctx.Done():
			return cluster.Unavailablef("Timeout was reached before node joined. %v", err)
		}
	}
}

// joinErr returns err, with what went wrong while cleaning up after it.
func joinErr(err, cleaning error) error {
	if cleaning == nil {
		return err
	}
	return fmt.Errorf("%w (and cleaning up: %v)", err, cleaning)
}
