package dispatch

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/skep-dev/skep/internal/pki"
)

// conns are this node's connections to managers, by address. They are made anew
// after the certificate was: the old one's end, or role, would count against them.
type conns struct {
	codec *codec
	id    *pki.Identity
	dial  Dialer

	mu    sync.Mutex
	open  map[string]*grpc.ClientConn
	stale <-chan struct{} // closed when what open was made with has changed
	done  bool
}

// connect returns a new connection to a manager, made at its first call.
func connect(cd *codec, dial Dialer, addr string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, addr) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(cd), grpc.MaxCallRecvMsgSize(maxDown)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(5*time.Minute),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
	)
}

// to returns the connection to the manager at addr.
func (c *conns) to(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return nil, errors.New("the node is shutting down")
	}
	select {
	case <-c.stale:
		for _, cc := range c.open {
			cc.Close()
		}
		c.open, c.stale = nil, nil
	default:
	}
	if c.stale == nil {
		c.stale = c.id.Changed()
	}
	if cc := c.open[addr]; cc != nil {
		return cc, nil
	}
	cc, err := connect(c.codec, c.dial, addr, credentials.NewTLS(c.id.ClientTLS(pki.ProtoRPC, "")))
	if err != nil {
		return nil, err
	}
	if c.open == nil {
		c.open = map[string]*grpc.ClientConn{}
	}
	c.open[addr] = cc
	return cc, nil
}

// call makes a call and returns its error with its kind.
func (c *conns) call(ctx context.Context, addr, name string, in, out any) error {
	cc, err := c.to(addr)
	if err != nil {
		return err
	}
	return fromGRPC(cc.Invoke(ctx, method(name), in, out))
}

// close closes all connections for good.
func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	for _, cc := range c.open {
		cc.Close()
	}
	c.open = nil
}
