package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
)

// redirecter is a reply that may say where the leader is instead.
type redirecter interface {
	redirect() string
	reset()
}

func (r *IssueReply) redirect() string  { return r.Redirect }
func (r *IssueReply) reset()            { *r = IssueReply{} }
func (r *AttachReply) redirect() string { return r.Redirect }
func (r *AttachReply) reset()           { *r = AttachReply{} }
func (r *empty) redirect() string       { return r.Redirect }
func (r *empty) reset()                 { *r = empty{} }

// Renew has a manager sign a new certificate for this node. Even an expired one
// is good enough to ask with.
func (c *Client) Renew(ctx context.Context, csr []byte) ([]byte, error) {
	rep := new(IssueReply)
	err := c.Call(ctx, "Issue", &IssueRequest{CSR: csr}, rep)
	return rep.Cert, err
}

// JoinRaft has the leader make this node, which answers Raft at addr, a member.
func (c *Client) JoinRaft(ctx context.Context, addr string) error {
	return c.Call(ctx, "Join", &JoinRequest{Addr: addr}, new(empty))
}

// Leave tells the leader that this node leaves the swarm.
func (c *Client) Leave(ctx context.Context) error {
	return c.Call(ctx, "Leave", &leaveRequest{}, new(empty))
}

// Attach gives a plain container a place in an attachable network.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (AttachReply, error) {
	rep := new(AttachReply)
	err := c.Call(ctx, "Attach", &req, rep)
	return *rep, err
}

// Detach gives a container's place back. Idempotent.
func (c *Client) Detach(ctx context.Context, taskID string) error {
	return c.Call(ctx, "Detach", &detachRequest{TaskID: taskID}, new(empty))
}

// Issued is what a host that joins a swarm is given.
type Issued struct {
	IssueReply
	Root *pki.Root
	Key  []byte
	// Manager is the address of the manager that answered.
	Manager string
}

// JoinSwarm asks the manager at addr for a new node's identity. The connection
// is pinned to the root that the token names. Errors are in Docker's words; one
// of connecting is *net.OpError.
func JoinSwarm(ctx context.Context, dial Dialer, addr, token string, avail swarm.NodeAvailability) (*Issued, error) {
	tok, err := pki.ParseToken(token)
	if err != nil {
		return nil, err
	}
	csr, key, err := pki.NewRequest()
	if err != nil {
		return nil, err
	}
	cd, err := newCodec()
	if err != nil {
		return nil, err
	}
	req := &IssueRequest{CSR: csr, Token: token, Availability: avail}
	for range 4 {
		out, err := joinAt(ctx, cd, dial, addr, tok, req)
		if err != nil {
			return nil, err
		}
		if out.Redirect == "" {
			out.Key, out.Manager = key, addr
			return out, nil
		}
		addr = out.Redirect
	}
	return nil, ErrNoLeader
}

func joinAt(ctx context.Context, cd *codec, dial Dialer, addr string, tok pki.Token, req *IssueRequest) (*Issued, error) {
	raw, err := dial(ctx, addr) // by itself first, for an error that says what is wrong
	if err != nil {
		return nil, err
	}
	cfg, root := pki.JoinTLS(tok)
	c := tls.Client(raw, cfg)
	err = c.HandshakeContext(ctx)
	c.Close()
	if err != nil {
		var fp *pki.FingerprintError
		if errors.As(err, &fp) {
			return nil, cluster.Invalidf("%s", fp.Error())
		}
		return nil, cluster.Unavailablef("manager at %s: %v", addr, err)
	}
	cc, err := connect(cd, dial, addr, credentials.NewTLS(cfg))
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	rep := new(IssueReply)
	if err := cc.Invoke(ctx, method("Issue"), req, rep, grpc.WaitForReady(false)); err != nil {
		// With its code, as Docker prints it.
		return nil, &remoteError{text: err.Error(), kind: kindOf(err)}
	}
	r := root()
	if r == nil {
		return nil, fmt.Errorf("manager at %s: no root certificate", addr)
	}
	return &Issued{IssueReply: *rep, Root: r}, nil
}

// kindOf returns the kind of a gRPC error.
func kindOf(err error) error {
	var r *remoteError
	if errors.As(fromGRPC(err), &r) {
		return r.kind
	}
	return nil
}

// items decodes the items of an assignment.
func (c *codec) items(in []*wireItem) ([]cluster.Item, error) {
	out := make([]cluster.Item, len(in))
	for i, w := range in {
		out[i] = cluster.Item{Kind: w.Kind, ID: w.ID}
		if len(w.Body) == 0 || string(w.Body) == "\xf6" { // null
			continue
		}
		if err := c.item(&out[i], w.Body); err != nil {
			return nil, fmt.Errorf("item %d %s: %w", w.Kind, w.ID, err)
		}
	}
	return out, nil
}

func (c *codec) item(it *cluster.Item, body []byte) error {
	var v any
	switch it.Kind {
	case cluster.ItemTask:
		v = fresh(&it.Task)
	case cluster.ItemNetwork:
		v = fresh(&it.Network)
	case cluster.ItemPeer:
		v = fresh(&it.Peer)
	case cluster.ItemEndpoint:
		v = fresh(&it.Endpoint)
	case cluster.ItemService:
		v = fresh(&it.Service)
	case cluster.ItemSecret:
		v = fresh(&it.Secret)
	case cluster.ItemConfig:
		v = fresh(&it.Config)
	default:
		return nil // of a neighbouring version
	}
	return c.dec.Unmarshal(body, v)
}

// fresh points a field at a new value and returns it.
func fresh[T any](field **T) *T {
	*field = new(T)
	return *field
}
