package dispatch

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

// connBuffer is how much of a connection is read at a time.
const connBuffer = 4 << 10

// Members changes the Raft group. Its methods are called on the leader only.
type Members interface {
	// AddVoter makes a node a voter that is reached at addr, or gives it a new
	// address. Idempotent.
	AddVoter(ctx context.Context, nodeID, addr string) error
	// RemoveServer takes a node out. Idempotent. It is refused with
	// errdefs.ErrFailedPrecondition when the quorum would be lost.
	RemoveServer(ctx context.Context, nodeID string) error
}

// Config is what a Server is made of.
type Config struct {
	Store    *store.Store
	Identity *pki.Identity
	Propose  Proposer
	Members  Members
	// Leader returns the leader's node id and address, "" when nobody leads.
	Leader func() (nodeID, addr string)
	// Control answers a call of control's API on the leader.
	Control func(ctx context.Context, method string, body []byte) ([]byte, error)
	// Suspects and Probe tell early of lost hosts; both may be nil. Probe
	// reports whether a node's host answers.
	Suspects Suspects
	Probe    func(ctx context.Context, n *cluster.Node) bool
	Dial     Dialer
	Log      *slog.Logger
}

// Server is a manager's end of the calls on the cluster port. Run serves them;
// Lead runs while this manager leads.
type Server struct {
	Config
	codec *codec
	lead  atomic.Pointer[lead]
	peers *conns
	stop  chan struct{} // closed when Run ends

	mu      sync.Mutex
	waiting map[string]*waiter // streams a node was asked to open
}

// New returns a server.
func New(c Config) (*Server, error) {
	cd, err := newCodec()
	if err != nil {
		return nil, err
	}
	return &Server{
		Config: c, codec: cd, stop: make(chan struct{}), waiting: map[string]*waiter{},
		peers: &conns{codec: cd, id: c.Identity, dial: c.Dial},
	}, nil
}

// Run serves calls from lis, the port's RPC listener, until ctx ends.
func (s *Server) Run(ctx context.Context, lis net.Listener) error {
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(s.codec),
		grpc.Creds(donetls{credentials.NewTLS(s.Identity.ServerTLS())}),
		grpc.MaxRecvMsgSize(maxUp),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(1024),
		// Most sessions say little most of the time, and two buffers of 32 KB for
		// each would be a third of a manager's memory.
		grpc.ReadBufferSize(connBuffer), grpc.WriteBufferSize(2*connBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	g.RegisterService(&service, s)
	stop := context.AfterFunc(ctx, func() {
		close(s.stop)
		g.Stop()
	})
	defer stop()
	defer s.peers.close()
	err := g.Serve(lis)
	g.Stop()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// leading returns the leadership when this manager has it, else the address of
// the leader; ErrNoLeader when there is neither.
func (s *Server) leading() (*lead, string, error) {
	if l := s.lead.Load(); l != nil {
		return l, "", nil
	}
	id, addr := s.Leader()
	if addr == "" || id == s.Identity.Peer().NodeID {
		return nil, "", ErrNoLeader
	}
	return nil, addr, nil
}

// leadingSoon is leading, but waits a while for an election to end: those who
// ask would only ask again.
func (s *Server) leadingSoon(ctx context.Context) (*lead, string, error) {
	deadline := time.Now().Add(electionWait)
	for {
		l, addr, err := s.leading()
		if err == nil || time.Now().After(deadline) {
			return l, addr, err
		}
		select {
		case <-time.After(electionLook):
		case <-ctx.Done():
			return nil, "", err
		case <-s.stop:
			return nil, "", err
		}
	}
}

// anyone returns who calls: the zero Peer for one without a certificate.
func (s *Server) anyone(ctx context.Context) (pki.Peer, string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pki.Peer{}, "", cluster.Deniedf("the call comes from nowhere")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return pki.Peer{}, "", cluster.Deniedf("the call comes without TLS")
	}
	who, err := pki.PeerOf(info.State, s.Identity.Root(), time.Now())
	if err != nil {
		return pki.Peer{}, "", cluster.Deniedf("certificate: %v", err)
	}
	if who.Zero() {
		return who, p.Addr.String(), nil
	}
	if own := s.Identity.Peer().ClusterID; who.ClusterID != own {
		return pki.Peer{}, "", cluster.Deniedf("node %s is of another swarm", who.NodeID)
	}
	if c := s.Store.View().Cluster(); c != nil {
		if _, removed := c.RemovedNodes[who.NodeID]; removed {
			return pki.Peer{}, "", cluster.Deniedf("node %s was removed from the swarm", who.NodeID)
		}
	}
	return who, p.Addr.String(), nil
}

// caller returns who calls, a node of this swarm with a valid certificate.
func (s *Server) caller(ctx context.Context) (pki.Peer, string, error) {
	p, addr, err := s.anyone(ctx)
	switch {
	case err != nil:
		return p, addr, err
	case p.Zero():
		return p, addr, cluster.Deniedf("the call needs a node's certificate")
	case p.Expired:
		return p, addr, cluster.Deniedf("the certificate of node %s ended at %s", p.NodeID, p.NotAfter.UTC().Format(time.RFC3339))
	}
	return p, addr, nil
}

// manager returns who calls, a manager.
func (s *Server) manager(ctx context.Context) (pki.Peer, error) {
	p, _, err := s.caller(ctx)
	if err == nil && p.Role != swarm.NodeRoleManager {
		return p, cluster.Deniedf("node %s is not a manager", p.NodeID)
	}
	return p, err
}

// gossipKey returns the key nodes encrypt their gossip with. It is derived from
// the root's key, which every manager has and nobody else.
func (s *Server) gossipKey(v store.View) []byte {
	c := v.Cluster()
	if c == nil || len(c.RootCA.Key) == 0 {
		return nil
	}
	k, err := hkdf.Key(sha256.New, c.RootCA.Key, []byte(c.ID), "skep gossip v1", 32)
	if err != nil {
		s.Log.Error("gossip key", "err", err)
	}
	return k
}

// unary makes a method's descriptor from its function.
func unary[Req, Rep any](name string, f func(*Server, context.Context, *Req) (*Rep, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(Req)
		if err := dec(in); err != nil {
			return nil, grpcError(cluster.Invalidf("%s: %v", name, err))
		}
		rep, err := guarded(srv.(*Server), name, func() (*Rep, error) { return f(srv.(*Server), ctx, in) })
		if err != nil {
			return nil, grpcError(err)
		}
		return rep, nil
	}}
}

func streaming(name string, f func(*Server, grpc.ServerStream) error) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error {
			_, err := guarded(srv.(*Server), name, func() (none struct{}, err error) { return none, f(srv.(*Server), stream) })
			return grpcError(err)
		}}
}

// guarded answers a call. A panic ends that call alone: gRPC would let it end the
// daemon, and what one manager could not bear the next would be asked at once.
func guarded[Rep any](s *Server, name string, f func() (Rep, error)) (rep Rep, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("a call panicked", "call", name, "err", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s met a defect of the manager, which its log tells of: %v", name, p)
		}
	}()
	return f()
}

const serviceName = "skep.Cluster"

// service describes the calls of the cluster port. (gRPC wants a variable; it
// is never changed.)
var service = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		unary("Issue", (*Server).issue),
		unary("Join", (*Server).join),
		unary("Leave", (*Server).leave),
		unary("Attach", (*Server).attach),
		unary("Detach", (*Server).detach),
		unary("Forward", (*Server).forward),
	},
	Streams: []grpc.StreamDesc{
		streaming("Session", (*Server).serveSession),
		streaming("Reverse", (*Server).serveReverse),
		streaming("Watch", (*Server).serveWatch),
	},
}

func method(name string) string { return fmt.Sprintf("/%s/%s", serviceName, name) }
