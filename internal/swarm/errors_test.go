package swarm

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/pki"
)

// inNoSwarm checks that a failed attempt has left nothing behind.
func inNoSwarm(t *testing.T, h *host) {
	t.Helper()
	if info := h.Info(t.Context()); info.LocalNodeState != api.LocalNodeStateInactive || info.NodeID != "" || info.Error != "" {
		t.Errorf("left behind: %+v", info)
	}
	if files, _ := filepath.Glob(filepath.Join(h.dir, "*")); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

func TestInitRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, "52.0", 1)
	const words = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	if _, err := h.Control(); err == nil || err.Error() != words || !errdefs.IsUnavailable(err) {
		t.Errorf("in no swarm: %v", err)
	}
	for _, c := range []struct {
		req api.InitRequest
		err string
	}{
		{api.InitRequest{AdvertiseAddr: "bogus"}, "advertise address must be a non-zero IP address or network interface (with optional port number)"},
		{api.InitRequest{AdvertiseAddr: "192.0.2.1"}, "advertise address 192.0.2.1 is not an address of this host"},
		{api.InitRequest{Spec: api.Spec{CAConfig: api.CAConfig{NodeCertExpiry: time.Minute}}},
			"error updating cluster settings: rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s"},
		{api.InitRequest{DataPathPort: 80}, "Datapath port number is not in valid range (1024-49151) : 80"},
		{api.InitRequest{AutoLockManagers: true}, "autolock (--autolock) is not built yet"},
	} {
		req := c.req
		req.ListenAddr = h.ip + ":2377"
		if req.AdvertiseAddr == "" {
			req.AdvertiseAddr = h.ip
		}
		if _, err := h.Init(t.Context(), req); err == nil || err.Error() != c.err {
			t.Errorf("%v, want %q", err, c.err)
		}
		inNoSwarm(t, h)
	}
	// The port is taken.
	l, err := h.listen(h.ip + ":2377")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := h.Init(t.Context(), api.InitRequest{ListenAddr: h.ip + ":2377", AdvertiseAddr: h.ip}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("%v", err)
	}
	inNoSwarm(t, h)
}

func TestJoinRefused(t *testing.T) {
	t.Parallel()
	m, h := newHost(t, "53.0", 1), newHost(t, "53.0", 2)
	m.init(quick())
	good := m.token(worker)
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other := pki.NewToken(root)
	tok, err := pki.ParseToken(other)
	if err != nil {
		t.Fatal(err)
	}
	const necessary = "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"
	for _, c := range []struct{ token, addr, advertise, err string }{
		{"foo", m.ip, "", "invalid join token"},
		{"", m.ip, "", necessary},
		{good[:len(good)-3] + "aaa", m.ip, "", necessary},
		{other, m.ip, "", "remote CA does not match fingerprint. Expected: " + tok.Fingerprint()},
		{good, m.ip, "bogus", "advertise address must be a non-zero IP address or network interface (with optional port number)"},
		{good, m.ip + ":2399", "", `rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing dial tcp 127.53.0.2:0->127.53.0.1:2399: connect: connection refused"`},
	} {
		start := time.Now()
		err := h.Join(t.Context(), api.JoinRequest{ListenAddr: h.ip + ":2377", AdvertiseAddr: c.advertise, RemoteAddrs: []string{c.addr}, JoinToken: c.token})
		if err == nil || err.Error() != c.err {
			t.Errorf("%v, want %q", err, c.err)
		}
		t.Logf("refused after %v: %q", time.Since(start), c.err)
		inNoSwarm(t, h)
	}
	if n := len(m.view().Nodes()); n != 1 {
		t.Errorf("refused joins have left %d nodes", n)
	}
	h.join(m, worker)
	// A node that was removed is refused, and can join anew.
	c, err := m.Control()
	if err != nil {
		t.Fatal(err)
	}
	id := h.NodeID()
	if err := c.RemoveNode(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed node is refused", func() (bool, any) {
		info := h.Info(t.Context())
		return strings.Contains(info.Error, "removed from the swarm"), info.Error
	})
	if err := h.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	inNoSwarm(t, h)
	h.join(m, worker)
	expectNodes(t, m, map[string]string{"host1": "manager ready reachable", "host2": "worker ready"})
}

func TestLastManagerLeaves(t *testing.T) {
	t.Parallel()
	m := newHost(t, "54.0", 1)
	m.init(quick())
	err := m.Leave(t.Context(), false)
	if want := "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."; err == nil || err.Error() != want || !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	if err := m.Leave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	inNoSwarm(t, m)
	m.init(quick())
}

func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	m1, m2, w := newHost(t, "55.0", 1), newHost(t, "55.0", 2), newHost(t, "55.0", 3)
	id := m1.init(quick())
	m2.join(m1, asManager)
	w.join(m1, worker)
	expectNodes(t, m1, map[string]string{"host1": "manager ready reachable", "host2": "manager ready reachable", "host3": "worker ready"})
	token := m1.token(worker)
	m2.kill()
	eventually(t, "the quorum is lost", func() (bool, any) {
		info := m1.Info(t.Context())
		return strings.HasPrefix(info.Error, "rpc error: code = Unknown desc = The swarm does not have a leader."), info.Error
	})
	err := m1.Leave(t.Context(), false)
	if want := "You are attempting to leave the swarm on a node that is participating as a manager. The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	got, err := m1.Init(t.Context(), api.InitRequest{ListenAddr: m1.ip + ":2377", AdvertiseAddr: m1.ip, ForceNewCluster: true})
	if err != nil || got != id {
		t.Fatalf("%s, %v; want node %s", got, err, id)
	}
	if m1.token(worker) != token {
		t.Error("it is another swarm")
	}
	expectNodes(t, m1, map[string]string{"host1": "manager ready reachable", "host2": "worker down", "host3": "worker ready"})
	// It lasts over a restart, and takes new managers.
	m1.stop()
	m1.start()
	eventually(t, "the swarm is back", func() (bool, any) {
		got := m1.nodes()
		return maps.Equal(got, map[string]string{"host1": "manager ready reachable", "host2": "worker down", "host3": "worker ready"}), got
	})
	m3 := newHost(t, "55.0", 4)
	m3.join(m1, asManager)
	if got := m1.nodes()["host4"]; got != "manager ready reachable" && got != "manager unknown reachable" {
		t.Errorf("a new manager is %q", got)
	}
}

func TestLeftoversOfACrash(t *testing.T) {
	t.Parallel()
	h := newHost(t, "56.0", 1)
	if err := os.MkdirAll(filepath.Join(h.dir, dirRaft), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, fileKeys), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.init(quick())
}

func TestAllWereOffForTooLong(t *testing.T) {
	t.Parallel()
	hosts := []*host{newHost(t, "57.0", 1), newHost(t, "57.0", 2), newHost(t, "57.0", 3), newHost(t, "57.0", 4)}
	hosts[0].init(quick())
	hosts[1].join(hosts[0], asManager)
	hosts[2].join(hosts[0], asManager)
	hosts[3].join(hosts[0], worker)
	all := map[string]string{"host1": "manager ready reachable", "host2": "manager ready reachable", "host3": "manager ready reachable", "host4": "worker ready"}
	expectNodes(t, hosts[0], all)
	c := hosts[0].view().Cluster()
	root, err := pki.ParseRoot(c.RootCA.Cert, c.RootCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[*host]pki.Peer{}
	for _, h := range hosts {
		ids[h] = h.cur.Load().id.Peer()
	}
	for _, h := range hosts {
		h.kill()
	}
	for _, h := range hosts { // until all certificates have ended
		cert, key := endedCert(t, root, ids[h])
		id, err := pki.NewIdentity(filepath.Join(h.dir, dirCerts), root, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Save(); err != nil {
			t.Fatal(err)
		}
		if !id.Expired(time.Now()) {
			t.Fatal("the certificate has not ended")
		}
	}
	for _, h := range hosts {
		h.start()
	}
	lead := leaderOf(t, hosts[:3]...)
	eventually(t, "everybody is back", func() (bool, any) {
		got := lead.nodes()
		ready := 0
		for _, s := range got {
			if strings.Contains(s, " ready") {
				ready++
			}
		}
		return ready == len(hosts), got
	})
	for _, h := range hosts {
		eventually(t, "its certificate is renewed", func() (bool, any) {
			leaf := h.cur.Load().id.Leaf()
			return leaf.NotAfter.After(time.Now()), leaf.NotAfter
		})
	}
}

// endedCert is a certificate of p's that ended a minute ago.
func endedCert(t *testing.T, root *pki.Root, p pki.Peer) (cert, key []byte) {
	t.Helper()
	_, key, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	rootKey, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := x509.ParsePKCS8PrivateKey(pemBytes(t, rootKey))
	if err != nil {
		t.Fatal(err)
	}
	own, err := x509.ParsePKCS8PrivateKey(pemBytes(t, key))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: p.NodeID, Organization: []string{p.ClusterID}, OrganizationalUnit: []string{"swarm-" + string(p.Role)}},
		NotBefore:    time.Now().Add(-50 * time.Minute), NotAfter: time.Now().Add(-time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root.Certificate(), own.(crypto.Signer).Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

func pemBytes(t *testing.T, b []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}
