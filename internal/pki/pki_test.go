package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

func newRootT(t *testing.T) *Root {
	t.Helper()
	r, err := NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func issueT(t *testing.T, r *Root, sub Subject, validity time.Duration) (cert, key []byte) {
	t.Helper()
	csr, key, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err = r.Issue(csr, sub, time.Now(), validity)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func identityT(t *testing.T, r *Root, dir string, sub Subject) *Identity {
	t.Helper()
	cert, key := issueT(t, r, sub, DefaultValidity)
	id, err := NewIdentity(dir, r, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestTokenRoundTrip(t *testing.T) {
	r := newRootT(t)
	s := NewToken(r)
	if len(s) != len("SWMTKN-1-")+50+1+25 {
		t.Errorf("token %q has %d characters", s, len(s))
	}
	tok, err := ParseToken(s)
	if err != nil {
		t.Fatal(err)
	}
	if tok.Digest != r.Digest() {
		t.Error("the digest is not the root's")
	}
	if !SameToken(s, s) || SameToken(s, NewToken(r)) || SameToken("", "") {
		t.Error("tokens compare wrongly")
	}
}

func TestBadTokens(t *testing.T) {
	good := NewToken(newRootT(t))
	for _, s := range []string{
		"", "foo", "SWMTKN", "SWMTKN-1", "SWMTKN-1--", good + "-", good + "x", "x" + good,
		strings.Replace(good, "-1-", "-2-", 1), strings.ToUpper(good), strings.Repeat("-", 200),
		"SWMTKN-1-" + strings.Repeat("z", 50) + "-" + strings.Repeat("0", 25), // over 256 bits
		good[:9] + "+" + good[10:],
	} {
		if _, err := ParseToken(s); err == nil || err.Error() != "invalid join token" || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("foo")
	f.Add("SWMTKN-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("0", 25))
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if !strings.HasPrefix(s, "SWMTKN-1-") || !strings.HasSuffix(s, "-"+tok.Secret) {
			t.Errorf("%q was taken apart as %+v", s, tok)
		}
	})
}

func FuzzIssue(f *testing.F) {
	csr, _, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	r, err := NewRoot(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cert, err := r.Issue(b, Subject{NodeID: "n", Role: swarm.NodeRoleWorker, ClusterID: "c"}, time.Now(), 0)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v", err)
			}
			return
		}
		leaf, err := parseCert(cert)
		if err != nil || leaf.Subject.CommonName != "n" || leaf.IsCA {
			t.Errorf("issued %v, %v", leaf, err)
		}
	})
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certificates")
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	r := newRootT(t)
	sub := Subject{NodeID: "n1", Role: swarm.NodeRoleWorker, ClusterID: "c1"}
	id := identityT(t, r, dir, sub)
	if err := id.Save(); err != nil {
		t.Fatal(err)
	}
	oldCert, err := os.ReadFile(filepath.Join(dir, fileCert))
	if err != nil {
		t.Fatal(err)
	}
	sub.Role = swarm.NodeRoleManager
	changed := id.Changed()
	if err := id.Replace(issueT(t, r, sub, DefaultValidity)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("the change was not told")
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Peer() != id.Peer() || got.Peer().Role != swarm.NodeRoleManager {
		t.Errorf("loaded %+v, want %+v", got.Peer(), id.Peer())
	}
	// A crash between the two writes leaves the new key and the old certificate.
	if err := os.WriteFile(filepath.Join(dir, fileCert), oldCert, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = Load(dir); err != nil || got.Peer().Role != swarm.NodeRoleWorker {
		t.Errorf("after a torn renewal: %v, %v", got, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if len(files) != 3 || len(hidden) != 0 {
		t.Errorf("files %v %v", files, hidden)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, fi.Mode(), err)
		}
	}
	if err := id.Replace(issueT(t, r, Subject{NodeID: "n2", Role: swarm.NodeRoleWorker, ClusterID: "c1"}, DefaultValidity)); err == nil {
		t.Error("another node's certificate was taken")
	}
}

// handshake connects the two configurations and returns both ends' errors and
// what the server saw.
func handshake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c, s := tls.Client(a, client), tls.Server(b, server)
	serr := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			b.Close()
		}
		serr <- err
	}()
	cerr := c.Handshake()
	if cerr == nil {
		_, cerr = c.Read(make([]byte, 1)) // in TLS 1.3 the server's refusal arrives here
	}
	a.Close()
	return s.ConnectionState(), cerr, <-serr
}

func TestHandshakes(t *testing.T) {
	root, other := newRootT(t), newRootT(t)
	manager := identityT(t, root, "", Subject{"m", swarm.NodeRoleManager, "c"})
	worker := identityT(t, root, "", Subject{"w", swarm.NodeRoleWorker, "c"})
	stranger := identityT(t, other, "", Subject{"m", swarm.NodeRoleManager, "c"})
	tok, err := ParseToken(NewToken(root))
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := ParseToken(NewToken(other))
	if err != nil {
		t.Fatal(err)
	}
	join, joined := JoinTLS(tok)
	joinWrong, _ := JoinTLS(wrong)
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		err            string
	}{
		{"a worker to a manager", worker.ClientTLS(ProtoRPC, ""), manager.ServerTLS(), ""},
		{"a manager to a named manager", manager.ClientTLS(ProtoRaft, "m"), manager.ServerTLS(), ""},
		{"to the wrong manager", manager.ClientTLS(ProtoRaft, "m2"), manager.ServerTLS(), "the peer is manager m, not m2"},
		{"a worker plays manager", worker.ClientTLS(ProtoRPC, ""), worker.ServerTLS(), `the peer "w" is not a manager`},
		{"the server is of another root", worker.ClientTLS(ProtoRPC, ""), stranger.ServerTLS(), "unknown authority"},
		{"the client is of another root", stranger.ClientTLS(ProtoRPC, ""), manager.ServerTLS(), ""},
		{"join", join, manager.ServerTLS(), ""},
		{"join with another swarm's token", joinWrong, manager.ServerTLS(), "remote CA does not match fingerprint. Expected: " + wrong.Fingerprint()},
	} {
		t.Run(c.name, func(t *testing.T) {
			cs, cerr, serr := handshake(t, c.client, c.server)
			if c.name == "the client is of another root" {
				if cerr == nil || serr == nil {
					t.Errorf("both ends are content: %v, %v", cerr, serr)
				}
				return
			}
			if c.err == "" {
				if cerr != nil || serr != nil || cs.Version < tls.VersionTLS12 {
					t.Errorf("%v, %v, version %x", cerr, serr, cs.Version)
				}
				return
			}
			if cerr == nil || !strings.Contains(cerr.Error(), c.err) {
				t.Errorf("got %v, want %q", cerr, c.err)
			}
		})
	}
	if r := joined(); r == nil || r.Digest() != root.Digest() {
		t.Error("the pinned root was not kept")
	}
}

func TestExpiredCertificateIsKnownAsSuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRootT(t)
		manager := identityT(t, root, "", Subject{"m", swarm.NodeRoleManager, "c"})
		cert, key := issueT(t, root, Subject{"w", swarm.NodeRoleWorker, "c"}, time.Hour)
		worker, err := NewIdentity("", root, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		cs, cerr, serr := handshake(t, worker.ClientTLS(ProtoRPC, ""), manager.ServerTLS())
		if cerr != nil || serr != nil {
			t.Fatal(cerr, serr)
		}
		p, err := PeerOf(cs, root, time.Now())
		if err != nil || !p.Expired || p.NodeID != "w" {
			t.Errorf("%+v, %v", p, err)
		}
		// A manager whose own certificate has ended is refused by clients.
		time.Sleep(DefaultValidity)
		if _, cerr, _ = handshake(t, worker.ClientTLS(ProtoRPC, ""), manager.ServerTLS()); cerr == nil {
			t.Error("an expired manager was trusted")
		}
	})
}

func TestRenewAt(t *testing.T) {
	r := newRootT(t)
	cert, _ := issueT(t, r, Subject{"n", swarm.NodeRoleWorker, "c"}, 100*time.Hour)
	leaf, err := parseCert(cert)
	if err != nil {
		t.Fatal(err)
	}
	for frac, want := range map[float64]float64{0: 50, 0.5: 65, 1: 80} {
		got := RenewAt(leaf, frac).Sub(leaf.NotBefore.Add(backdate)).Hours()
		if math.Abs(got-want) > 0.01 {
			t.Errorf("at %v: %v h, want %v h", frac, got, want)
		}
	}
}

func TestRenewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newRootT(t)
		id := identityT(t, root, "", Subject{"n", swarm.NodeRoleWorker, "c"})
		role := make(chan swarm.NodeRole)
		var fails, asked atomic.Int64
		var wanted atomic.Value
		wanted.Store(swarm.NodeRoleWorker)
		r := Renewer{Identity: id, Role: role, Log: slog.New(slog.DiscardHandler),
			Request: func(_ context.Context, csr []byte) ([]byte, error) {
				asked.Add(1)
				if fails.Load() > 0 {
					fails.Add(-1)
					return nil, errors.New("no manager")
				}
				return root.Issue(csr, Subject{"n", wanted.Load().(swarm.NodeRole), "c"}, time.Now(), DefaultValidity)
			}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()

		role <- swarm.NodeRoleWorker // as it is: nothing to do
		synctest.Wait()
		if asked.Load() != 0 {
			t.Errorf("asked %d times for the role it has", asked.Load())
		}
		wanted.Store(swarm.NodeRoleManager)
		role <- swarm.NodeRoleManager
		synctest.Wait()
		if asked.Load() != 1 || id.Peer().Role != swarm.NodeRoleManager {
			t.Errorf("after promotion: asked %d times, %+v", asked.Load(), id.Peer())
		}
		fails.Store(3)
		end := id.Leaf().NotAfter
		time.Sleep(DefaultValidity * 81 / 100)
		synctest.Wait()
		if asked.Load() != 5 || !id.Leaf().NotAfter.After(end) {
			t.Errorf("at 81 %%: asked %d times, ends %v", asked.Load(), id.Leaf().NotAfter)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
