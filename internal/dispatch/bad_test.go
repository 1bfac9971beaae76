package dispatch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
)

// stranger connects to a manager with a TLS configuration of its own.
func (w *world) stranger(t *testing.T, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	cd, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	cc, err := connect(cd, w.dial, addr, credentials.NewTLS(cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func nobody(proto string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{proto}, ServerName: "x"}
}

// opened opens a stream, sends m and returns how the stream ends.
func opened(t *testing.T, cc *grpc.ClientConn, name string, m any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method(name))
	if err != nil {
		return fromGRPC(err)
	}
	if err := st.SendMsg(m); err != nil && err != io.EOF {
		return fromGRPC(err)
	}
	for {
		if err := st.RecvMsg(new(down)); err != nil {
			return fromGRPC(err)
		}
	}
}

// everyCall makes each call of the port but Issue, and returns the errors.
func everyCall(t *testing.T, cc *grpc.ClientConn) map[string]error {
	t.Helper()
	out := map[string]error{}
	for name, in := range map[string]any{
		"Join": &JoinRequest{Addr: "10.0.0.9:2377"}, "Leave": &leaveRequest{}, "Attach": &AttachRequest{Network: "net", ContainerID: "c"},
		"Detach": &detachRequest{TaskID: "t1"}, "Forward": &forwardRequest{Method: "service.create", Body: []byte("{}")},
	} {
		out[name] = fromGRPC(cc.Invoke(t.Context(), method(name), in, new(empty)))
	}
	for name, m := range map[string]any{
		"Session": &up{Hello: &Hello{Description: &swarm.NodeDescription{Hostname: "evil"}, Addr: netip.MustParseAddr("6.6.6.6")}},
		"Reverse": &frame{Stream: "s", Data: []byte("x")}, "Watch": &watchRequest{NodeID: "w2", Kind: "logs"},
	} {
		out[name] = opened(t, cc, name, m)
	}
	return out
}

// TestWithoutCertificate: who has none may ask to be let in, and nothing else.
func TestWithoutCertificate(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		before := w.entries()
		for name, err := range everyCall(t, w.stranger(t, "m1:2377", nobody(pki.ProtoRPC))) {
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "needs a node's certificate") {
				t.Errorf("%s: %v", name, err)
			}
		}
		cc := w.stranger(t, "m1:2377", nobody(pki.ProtoRPC))
		for _, req := range []*IssueRequest{{}, {Token: "x"}, {CSR: []byte("x"), Token: strings.Repeat("SWMTKN-1-", 1000)}} {
			if err := fromGRPC(cc.Invoke(t.Context(), method("Issue"), req, new(IssueReply))); !errdefs.IsInvalidArgument(err) && !errdefs.IsPermissionDenied(err) {
				t.Errorf("%.60v: %v", req, err)
			}
		}
		if w.entries() != before {
			t.Error("something was written")
		}
	})
}

// TestAnothersCertificate: that of another swarm is none.
func TestAnothersCertificate(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		own := w.root
		root, err := pki.NewRoot(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.root = root
		id := w.identity("m1", manager, 0)
		w.root = own
		cfg := id.ClientTLS(pki.ProtoRPC, "")
		cfg.InsecureSkipVerify, cfg.VerifyConnection = true, nil
		for name, err := range everyCall(t, w.stranger(t, "m1:2377", cfg)) {
			if err == nil || errdefs.IsNotFound(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestWorkerCalls: a worker's certificate opens no manager's calls, nor Raft, nor
// other nodes' tasks.
func TestWorkerCalls(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		w.network("net", false)
		w.service("web", "net")
		w.task("t2", "web", "w2", "net", 12)
		id := w.identity("w1", worker, 0)
		cc := w.stranger(t, "m1:2377", id.ClientTLS(pki.ProtoRPC, ""))
		got := everyCall(t, cc)
		for _, name := range []string{"Join", "Forward", "Watch"} {
			if err := got[name]; !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "is not a manager") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := fromGRPC(cc.Invoke(t.Context(), method("Detach"), &detachRequest{TaskID: "t2"}, new(empty))); err == nil {
			t.Error("another node's task was detached")
		}
		if w.store.View().Task("t2").Desired != running {
			t.Errorf("%+v", w.store.View().Task("t2"))
		}
		for _, cfg := range []*tls.Config{id.ClientTLS(pki.ProtoRaft, ""), nobody(pki.ProtoRaft), nobody("h3"), nobody("")} {
			raw, err := w.dial(t.Context(), "m1:2377")
			if err != nil {
				t.Fatal(err)
			}
			c := tls.Client(raw, cfg)
			if err := c.HandshakeContext(t.Context()); err == nil {
				// With TLS 1.3 the client may be done before the server says no.
				if n, err := c.Read(make([]byte, 1)); err == nil {
					t.Errorf("%v: %d bytes", cfg.NextProtos, n)
				}
			}
			c.Close()
		}
	})
}

// TestMessagesTooLarge: what is larger than its bound, deeper or longer than a
// message can be is refused, and the manager goes on.
func TestMessagesTooLarge(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		m1, _, _ := oneLeader(w)
		cc := w.stranger(t, "m1:2377", w.identity("w1", worker, 0).ClientTLS(pki.ProtoRPC, ""))
		err := cc.Invoke(t.Context(), method("Attach"), &AttachRequest{Network: strings.Repeat("x", maxUp+1)}, new(AttachReply))
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("oversize: %v", err)
		}
		err = opened(t, cc, "Session", &up{Hello: &Hello{Description: &swarm.NodeDescription{Hostname: strings.Repeat("x", maxUp)}}})
		if err == nil || !strings.Contains(err.Error(), "larger than max") {
			t.Errorf("oversize in a session: %v", err)
		}
		for name, bomb := range map[string][]byte{
			"nested":             bytes.Repeat([]byte{0x81}, 1<<20),
			"a list of billions": {0xa1, 0x68, 'S', 't', 'a', 't', 'u', 's', 'e', 's', 0x9b, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff},
			"text of billions":   {0xa1, 0x67, 'N', 'e', 't', 'w', 'o', 'r', 'k', 0x7b, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff},
			"without an end":     {0xbf},
			"nothing":            {},
		} {
			err := cc.Invoke(t.Context(), method("Attach"), cbor.RawMessage(bomb), new(AttachReply))
			if err == nil || status.Code(err) == codes.Unknown {
				t.Errorf("%s: %v", name, err)
			}
			if err := opened(t, cc, "Session", cbor.RawMessage(bomb)); err == nil || err == io.EOF {
				t.Errorf("%s in a session: %v", name, err)
			}
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("h", maxHeaders))
		if err := cc.Invoke(ctx, method("Attach"), &AttachRequest{}, new(AttachReply)); err == nil || status.Code(err) == codes.InvalidArgument {
			t.Errorf("long headers: %v", err)
		}
		if _, _, err := m1.leading(); err != nil {
			t.Error(err)
		}
	})
}

// TestPanicEndsOneCall: gRPC does not catch panics; one call must not take the
// manager with it.
func TestPanicEndsOneCall(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		m1, _, _ := oneLeader(w)
		m1.Control = func(context.Context, string, []byte) ([]byte, error) { panic("a null where there should be none") }
		w.addNode("m2", manager)
		cc := w.stranger(t, "m1:2377", w.identity("m2", manager, 0).ClientTLS(pki.ProtoRPC, ""))
		for range 2 {
			err := fromGRPC(cc.Invoke(t.Context(), method("Forward"), &forwardRequest{Method: "service.create"}, new(forwardReply)))
			if err == nil || !strings.Contains(err.Error(), "Forward met a defect of the manager") {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestGarbageOnThePort: what is no handshake ends the connection; what is slow is
// not waited for longer than a handshake may take.
func TestGarbageOnThePort(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		oneLeader(w)
		junk := make([]byte, 64<<10)
		rand.Read(junk)
		for name, b := range map[string][]byte{
			"http": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "junk": junk, "zeros": make([]byte, 1<<16),
			"a huge record": {0x16, 0x03, 0x01, 0xff, 0xff, 0x01}, "http/2": []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		} {
			c, err := w.dial(t.Context(), "m1:2377")
			if err != nil {
				t.Fatal(err)
			}
			go c.Write(b)
			start := time.Now()
			if _, err := io.ReadAll(c); err == nil && time.Since(start) > handshakeTimeout+time.Second {
				t.Errorf("%s: closed after %v", name, time.Since(start))
			}
			c.Close()
		}
		slow, err := w.dial(t.Context(), "m1:2377")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for _, b := range []byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01} {
				if _, err := slow.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(4 * time.Second)
			}
		}()
		start := time.Now()
		io.ReadAll(slow)
		if d := time.Since(start); d < handshakeTimeout-time.Second || d > handshakeTimeout+time.Second {
			t.Errorf("a slow handshake was cut off after %v, not %v", d, handshakeTimeout)
		}
		slow.Close()
		<-sent
		// And those who are of the swarm are still served.
		n := w.node("w1", worker, "m1:2377")
		settle(time.Second)
		if n.completes() == 0 {
			t.Error("a node is not served any more")
		}
	})
}

// TestTextsOfAnyBytes: what a container's runtime says need not be UTF-8, and a
// text cut to its bound need not end with a whole letter.
func TestTextsOfAnyBytes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, _ := oneLeader(w)
		w.service("web", "")
		w.task("t1", "web", "w1", "", 1)
		n1.observe("t1", cluster.Status{State: cluster.StateFailed, Err: "exec \xff\xfe: " + strings.Repeat("é", maxText)})
		settle(time.Second)
		st := w.store.View().Task("t1").Status
		if st.State != cluster.StateFailed || !strings.HasPrefix(st.Err, "exec : é") || len(st.Err) > maxText || strings.ToValidUTF8(st.Err, "") != st.Err {
			t.Errorf("%v %.30q %d, losses %v", st.State, st.Err, len(st.Err), n1.losses())
		}
	})
}
