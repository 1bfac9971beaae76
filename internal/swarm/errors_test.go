package swarm

import (
	"maps"
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
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%q took %v", c.err, d)
		}
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
	eventually(t, 10*time.Second, "the removed node is refused", func() (bool, any) {
		info := h.Info(t.Context())
		return strings.Contains(info.Error, "removed from the swarm"), info.Error
	})
	if err := h.Leave(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	inNoSwarm(t, h)
	h.join(m, worker)
	expectNodes(t, m, 5*time.Second, map[string]string{"host1": "manager ready leader", "host2": "worker ready"})
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
	expectNodes(t, m1, 5*time.Second, map[string]string{"host1": "manager ready leader", "host2": "manager ready reachable", "host3": "worker ready"})
	token := m1.token(worker)
	m2.kill()
	eventually(t, 10*time.Second, "the quorum is lost", func() (bool, any) {
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
	expectNodes(t, m1, 15*time.Second, map[string]string{"host1": "manager ready leader", "host2": "worker down", "host3": "worker ready"})
	// It lasts over a restart, and takes new managers.
	m1.stop()
	m1.start()
	eventually(t, 10*time.Second, "the swarm is back", func() (bool, any) {
		got := m1.nodes()
		return maps.Equal(got, map[string]string{"host1": "manager ready leader", "host2": "worker down", "host3": "worker ready"}), got
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
