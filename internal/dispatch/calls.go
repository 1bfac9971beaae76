package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

// Times that calls may take.
const (
	attachTimeout = 20 * time.Second
	dialBack      = 3 * time.Second
	staleRetries  = 8
)

// issue gives a node its certificate: a new one that shows a join token, or a
// known one that shows its old certificate.
func (s *Server) issue(ctx context.Context, in *IssueRequest) (*IssueReply, error) {
	who, _, err := s.anyone(ctx)
	if err != nil {
		return nil, err
	}
	_, leader, err := s.leadingSoon(ctx)
	if err != nil || leader != "" {
		return &IssueReply{Redirect: leader}, err
	}
	if who.Zero() || in.Token != "" {
		return s.admit(ctx, in)
	}
	n := s.Store.View().Node(who.NodeID)
	if n == nil {
		return nil, cluster.Deniedf("node %s is not of this swarm (any more)", who.NodeID)
	}
	return s.sign(in.CSR, n.ID, CertificateRole(n))
}

// admit makes a node of a host that shows a join token.
func (s *Server) admit(ctx context.Context, in *IssueRequest) (*IssueReply, error) {
	c := s.Store.View().Cluster()
	if c == nil {
		return nil, ErrNoLeader
	}
	var role swarm.NodeRole
	switch {
	case pki.SameToken(in.Token, c.RootCA.ManagerToken):
		role = swarm.NodeRoleManager
	case pki.SameToken(in.Token, c.RootCA.WorkerToken):
		role = swarm.NodeRoleWorker
	default:
		return nil, cluster.Invalidf("A valid join token is necessary to join this cluster")
	}
	avail, err := cluster.ParseAvailability(in.Availability)
	if err != nil {
		return nil, err
	}
	n := &cluster.Node{
		ID:     cluster.NewID(),
		Spec:   &swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{}}, Role: role, Availability: avail},
		Role:   role,
		Status: cluster.NodeStatus{State: swarm.NodeStateUnknown},
	}
	rep, err := s.sign(in.CSR, n.ID, role)
	if err != nil {
		return nil, err
	}
	if err := s.Propose.Propose(ctx, store.CreateNode(n)); err != nil {
		return nil, err
	}
	s.Log.Info("node was admitted", "node", n.ID, "role", role)
	return rep, nil
}

// Renew signs a new certificate for this manager itself, while it leads: with
// the root's key at hand nobody else need be asked.
func (s *Server) Renew(csr []byte) ([]byte, error) {
	id := s.Identity.Peer().NodeID
	n := s.Store.View().Node(id)
	if s.lead.Load() == nil || n == nil {
		return nil, cluster.ErrNotLeader
	}
	rep, err := s.sign(csr, id, CertificateRole(n))
	if err != nil {
		return nil, err
	}
	return rep.Cert, nil
}

func (s *Server) sign(csr []byte, nodeID string, role swarm.NodeRole) (*IssueReply, error) {
	c := s.Store.View().Cluster()
	if c == nil {
		return nil, ErrNoLeader
	}
	root, err := pki.ParseRoot(c.RootCA.Cert, c.RootCA.Key)
	if err != nil {
		return nil, err
	}
	sub := pki.Subject{NodeID: nodeID, Role: role, ClusterID: c.ID}
	cert, err := root.Issue(csr, sub, time.Now(), c.Spec.CAConfig.NodeCertExpiry)
	if err != nil {
		return nil, err
	}
	return &IssueReply{NodeID: nodeID, ClusterID: c.ID, Cert: cert, Role: role}, nil
}

// join makes a node that holds a manager's certificate a member of the Raft
// group, once it has proved to be reachable where it says.
func (s *Server) join(ctx context.Context, in *JoinRequest) (*empty, error) {
	who, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	_, leader, err := s.leadingSoon(ctx)
	if err != nil || leader != "" {
		return &empty{Redirect: leader}, err
	}
	n := s.Store.View().Node(who.NodeID)
	if n == nil || n.Spec.Role != swarm.NodeRoleManager {
		return nil, cluster.Deniedf("node %s is not to be a manager", who.NodeID)
	}
	if err := checkAddr(in.Addr); err != nil {
		return nil, err
	}
	if err := s.reachBack(ctx, who.NodeID, in.Addr); err != nil {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(
			"could not connect to prospective new cluster member using its advertised address: %v", err))
	}
	if err := s.Members.AddVoter(ctx, who.NodeID, in.Addr); err != nil {
		return nil, err
	}
	return &empty{}, s.editNode(ctx, who.NodeID, func(n *cluster.Node) bool {
		if n.Manager != nil && n.Manager.Addr == in.Addr {
			return false
		}
		n.Manager = &cluster.Manager{RaftID: n.ID, Addr: in.Addr}
		return true
	})
}

// checkAddr refuses what cannot be a manager's address.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || net.ParseIP(host) == nil || net.ParseIP(host).IsUnspecified() {
		return cluster.Invalidf("%q is no manager's address", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return cluster.Invalidf("%q is no manager's address", addr)
	}
	return nil
}

// reachBack makes sure that the node answers at addr: a voter nobody reaches
// could cost the group its quorum.
func (s *Server) reachBack(ctx context.Context, nodeID, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, dialBack)
	defer cancel()
	raw, err := s.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer raw.Close()
	return tls.Client(raw, s.Identity.ClientTLS(pki.ProtoRaft, nodeID)).HandshakeContext(ctx)
}

// leave notes that a node leaves: out of the Raft group if it is in it, and
// down at once.
func (s *Server) leave(ctx context.Context, _ *leaveRequest) (*empty, error) {
	who, _, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	l, leader, err := s.leadingSoon(ctx)
	if err != nil || leader != "" {
		return &empty{Redirect: leader}, err
	}
	n := s.Store.View().Node(who.NodeID)
	if n == nil {
		return &empty{}, nil
	}
	if n.Manager != nil {
		if err := s.Members.RemoveServer(ctx, who.NodeID); err != nil {
			return nil, err
		}
	}
	err = s.editNode(ctx, who.NodeID, func(n *cluster.Node) bool {
		n.Manager = nil
		if n.Spec.Role != swarm.NodeRoleWorker {
			spec := *n.Spec
			spec.Role = swarm.NodeRoleWorker
			n.Spec = &spec
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return &empty{}, l.do(ctx, func() {
		if li := l.lives[who.NodeID]; li != nil {
			l.takeDown(who.NodeID, li, messageLeft, time.Now())
		}
	})
}

// editNode changes a node's record, reading it anew when another writer was
// faster.
func (s *Server) editNode(ctx context.Context, id string, edit nodeEdit) error {
	for i := 0; ; i++ {
		old := s.Store.View().Node(id)
		if old == nil {
			return cluster.NotFoundf("node %s not found", id)
		}
		n := *old
		if !edit(&n) {
			return nil
		}
		err := s.Propose.Propose(ctx, store.UpdateNode(&n))
		if !errors.Is(err, cluster.ErrStale) || i == staleRetries {
			return err
		}
	}
}

// attach gives a plain container a place in an attachable network.
func (s *Server) attach(ctx context.Context, in *AttachRequest) (*AttachReply, error) {
	who, _, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	_, leader, err := s.leadingSoon(ctx)
	if err != nil || leader != "" {
		return &AttachReply{Redirect: leader}, err
	}
	v := s.Store.View()
	n := v.Network(in.Network)
	if n == nil {
		n = v.NetworkByName(in.Network)
	}
	switch {
	case n == nil || n.PendingDelete:
		return nil, cluster.NotFoundf("network %s not found", in.Network)
	case !n.Spec.Attachable:
		return nil, cluster.Deniedf("network %s not manually attachable", in.Network)
	case len(in.ContainerID) > 128 || len(in.Names) > 256:
		return nil, cluster.Invalidf("the attachment's description is too long")
	}
	t := &cluster.Task{
		ID: cluster.NewID(), NodeID: who.NodeID, Desired: cluster.StateRunning,
		Attach: &cluster.Attach{NetworkID: n.ID, ContainerID: in.ContainerID, Wanted: in.Addr, Names: in.Names},
		Status: cluster.Status{State: cluster.StateNew, At: time.Now(), Message: "created"},
	}
	if err := s.Propose.Propose(ctx, store.CreateTask(t)); err != nil {
		return nil, err
	}
	rep, err := s.attached(ctx, t.ID, n)
	if err != nil {
		return nil, errors.Join(err, s.forget(context.WithoutCancel(ctx), who.NodeID, t.ID))
	}
	return rep, nil
}

// attached waits until the allocator has placed the attachment, and lets it serve.
func (s *Server) attached(ctx context.Context, taskID string, n *cluster.Network) (*AttachReply, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	changed, stop := s.Store.Watch(store.KindTask)
	defer stop()
	for {
		t := s.Store.View().Task(taskID)
		switch {
		case t == nil:
			return nil, cluster.NotFoundf("the attachment was removed")
		case t.Status.State.Terminal():
			return nil, cluster.Unavailablef("network %s: %s", n.Spec.Name, t.Status.Err)
		case len(t.Networks) == 1 && t.Networks[0].Addr.IsValid():
			st := cluster.Status{State: cluster.StateRunning, At: time.Now(), Message: "attached", ContainerID: t.Attach.ContainerID, Serving: true}
			if err := s.Propose.Propose(ctx, store.SetStatus(t.ID, st)); err != nil {
				return nil, err
			}
			return &AttachReply{TaskID: t.ID, NetworkID: n.ID, Addr: t.Networks[0].Addr}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, cluster.Unavailablef("network %s: no address within %v", n.Spec.Name, attachTimeout)
		}
	}
}

// detach gives the place of a plain container back.
func (s *Server) detach(ctx context.Context, in *detachRequest) (*empty, error) {
	who, _, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	_, leader, err := s.leadingSoon(ctx)
	if err != nil || leader != "" {
		return &empty{Redirect: leader}, err
	}
	return &empty{}, s.forget(ctx, who.NodeID, in.TaskID)
}

// forget deletes a node's attachment; one that is gone is no error.
func (s *Server) forget(ctx context.Context, nodeID, taskID string) error {
	for i := 0; ; i++ {
		t := s.Store.View().Task(taskID)
		if t == nil {
			return nil
		}
		if t.NodeID != nodeID || t.Attach == nil {
			return cluster.Deniedf("task %s is no attachment of node %s", taskID, nodeID)
		}
		err := s.Propose.Propose(ctx, store.DeleteTask(t))
		if !errors.Is(err, cluster.ErrStale) || i == staleRetries {
			return err
		}
	}
}

// forward answers a call of control's API that reached a follower.
func (s *Server) forward(ctx context.Context, in *forwardRequest) (*forwardReply, error) {
	if _, err := s.manager(ctx); err != nil {
		return nil, err
	}
	_, leader, err := s.leading()
	if err != nil || leader != "" {
		return &forwardReply{Redirect: leader, Err: toWire(err)}, nil
	}
	b, err := s.Control(ctx, in.Method, in.Body)
	return &forwardReply{Body: b, Err: toWire(err)}, nil
}

// electionWait is how long a call waits for a leader to appear, electionLook how
// often it looks.
const (
	electionWait = 4 * time.Second
	electionLook = 25 * time.Millisecond
)

// Forward has the leader answer a call of control's API. It waits out an
// election for a short while, then says ErrNoLeader. A write whose leader was
// lost before it answered is not tried again, for it may have been made; by
// control's convention writes are named noun.verb.
func (s *Server) Forward(ctx context.Context, name string, body []byte) ([]byte, error) {
	deadline := time.Now().Add(electionWait)
	for {
		out, err := s.forwardOnce(ctx, name, body)
		switch {
		case err == nil:
			return out, nil
		case errors.Is(err, errLeaderLost) && strings.Contains(name, "."):
			return nil, cluster.Unavailablef("rpc error: code = Unavailable desc = %v; the write may have been made", errLeaderLost)
		case errors.Is(err, errLeaderLost), errors.Is(err, cluster.ErrNotLeader), errdefs.IsUnavailable(err) && !isFinal(err):
		default:
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, ErrNoLeader
		}
		select {
		case <-time.After(electionLook):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errLeaderLost says that the leader went away while it was asked.
var errLeaderLost = errors.New("the leader was lost before it answered")

// finalError is an answer of the leader's, as opposed to a failure to get one.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	var f finalError
	return errors.As(err, &f)
}

// forwardOnce asks whoever leads now.
func (s *Server) forwardOnce(ctx context.Context, name string, body []byte) ([]byte, error) {
	l, addr, err := s.leading()
	if err != nil {
		return nil, err
	}
	if l != nil {
		out, err := s.Control(ctx, name, body)
		if err != nil && !errors.Is(err, cluster.ErrNotLeader) {
			err = finalError{err}
		}
		return out, err
	}
	ctx, stop := s.whileLeads(ctx, addr)
	defer stop()
	rep := new(forwardReply)
	err = s.peers.call(ctx, addr, "Forward", &forwardRequest{Method: name, Body: body}, rep)
	switch {
	case errors.Is(context.Cause(ctx), errLeaderLost):
		return nil, errLeaderLost
	case err != nil:
		return nil, err
	case rep.Redirect != "":
		return nil, cluster.ErrNotLeader
	case rep.Err != nil && rep.Err.Text == ErrNoLeader.Error():
		return nil, ErrNoLeader
	case rep.Err != nil:
		if err := fromWire(rep.Err); errors.Is(err, cluster.ErrNotLeader) {
			return nil, err
		}
		return nil, finalError{fromWire(rep.Err)}
	}
	return rep.Body, nil
}

// whileLeads returns a context that ends, with errLeaderLost, when the manager at
// addr does not lead any more: a host that has lost power never answers.
func (s *Server) whileLeads(ctx context.Context, addr string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(electionLook):
			}
			if _, now := s.Leader(); now != addr {
				cancel(errLeaderLost)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}
