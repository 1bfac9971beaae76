package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/pki"
)

// Bounds of the cluster port while a peer has not shown who it is.
const (
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 512
)

// Port is the cluster port: one TLS listener whose connections are gRPC's or
// Raft's, told apart by ALPN.
type Port struct {
	lis    net.Listener
	cfg    *tls.Config
	allow  func(pki.Peer) error
	root   func() *pki.Root
	rpc    *half
	raft   *half
	closed chan struct{}
	once   sync.Once
	log    *slog.Logger
}

// NewPort makes the cluster port of lis. allow says whether a peer may talk
// Raft; it is asked about managers only, also those whose certificate has ended.
func NewPort(lis net.Listener, id *pki.Identity, allow func(pki.Peer) error, log *slog.Logger) *Port {
	p := &Port{
		lis: lis, cfg: id.ServerTLS(), allow: allow, root: id.Root,
		closed: make(chan struct{}), log: log,
	}
	p.rpc = &half{port: p, conns: make(chan net.Conn), closed: make(chan struct{})}
	p.raft = &half{port: p, conns: make(chan net.Conn), closed: make(chan struct{})}
	return p
}

// RPC returns the listener of gRPC's connections, *tls.Conn with the handshake done.
func (p *Port) RPC() net.Listener { return p.rpc }

// Raft returns the listener of Raft's connections.
func (p *Port) Raft() net.Listener { return p.raft }

// Run accepts connections until ctx ends.
func (p *Port) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	defer p.Close()
	sem := make(chan struct{}, maxHandshakes)
	for {
		select {
		case sem <- struct{}{}:
		case <-p.closed:
			return nil
		}
		c, err := p.lis.Accept()
		if err != nil {
			<-sem
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			p.log.Warn("cluster port", "err", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of files, most likely
			case <-p.closed:
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-sem }()
			p.admit(ctx, c)
		})
	}
}

// admit makes the handshake and hands the connection on.
func (p *Port) admit(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := tls.Server(raw, p.cfg)
	to, err := p.half(ctx, c)
	if err != nil {
		p.log.Debug("cluster port: a connection was refused", "from", raw.RemoteAddr().String(), "err", err)
		raw.Close()
		return
	}
	select {
	case to.conns <- c:
	case <-ctx.Done():
		c.Close()
	case <-to.closed:
		c.Close()
	case <-p.closed:
		c.Close()
	}
}

func (p *Port) half(ctx context.Context, c *tls.Conn) (*half, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	cs := c.ConnectionState()
	switch cs.NegotiatedProtocol {
	case pki.ProtoRPC:
		return p.rpc, nil
	case pki.ProtoRaft:
		peer, err := pki.PeerOf(cs, p.root(), time.Now())
		if err != nil {
			return nil, err
		}
		if peer.Zero() || peer.Role != swarm.NodeRoleManager {
			return nil, fmt.Errorf("node %q may not talk Raft", peer.NodeID)
		}
		return p.raft, p.allow(peer)
	}
	return nil, fmt.Errorf("unknown protocol %q", cs.NegotiatedProtocol)
}

// Close ends the port and both its listeners.
func (p *Port) Close() error {
	var err error
	p.once.Do(func() {
		close(p.closed)
		err = p.lis.Close()
	})
	return err
}

// half is one of the port's two listeners. Closing it does not close the port.
type half struct {
	port   *Port
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (h *half) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	case <-h.port.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *half) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *half) Addr() net.Addr { return h.port.lis.Addr() }

// Dialer opens plain connections to other nodes.
type Dialer func(ctx context.Context, addr string) (net.Conn, error)

// userTimeout is how long a peer's host may leave data unacknowledged.
const userTimeout = 3 * time.Second

// DialTCP is the Dialer of real hosts. A peer whose host is gone is noticed by
// the kernel in about three seconds.
func DialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout: 2 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: time.Second, Interval: time.Second, Count: 2,
		},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) {
				// Keep-alives are for silence: what was sent and is not acknowledged
				// has its own time-out, of many minutes if it is not set.
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	return d.DialContext(ctx, "tcp", addr)
}

// DialRaft opens a connection to the Raft of another manager, if allow has
// nothing against it.
func DialRaft(ctx context.Context, dial Dialer, id *pki.Identity, addr string, allow func(pki.Peer) error) (net.Conn, error) {
	raw, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, id.RaftTLS(allow))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("manager at %s: %w", addr, err)
	}
	return c, nil
}

// donetls are the server's credentials: the handshake was made by the port.
type donetls struct {
	credentials.TransportCredentials
}

// ServerHandshake implements gRPC's credentials.
func (d donetls) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("the connection is not of the cluster port")
	}
	return c, credentials.TLSInfo{
		State:          t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// Clone implements gRPC's credentials.
func (d donetls) Clone() credentials.TransportCredentials {
	return donetls{d.TransportCredentials.Clone()}
}
