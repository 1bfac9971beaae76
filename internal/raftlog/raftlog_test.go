package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// network connects managers in memory, so that a test runs on a fake clock.
type network struct {
	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	net    *network
	addr   string
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
	cut    bool // guarded by net.mu: its link is down
	conns  []net.Conn
}

func (n *network) listen(addr string) *host {
	h := &host{net: n, addr: addr, accept: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[addr] = h
	return h
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.accept:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *host) Close() error   { h.once.Do(func() { close(h.closed) }); return nil }
func (h *host) Addr() net.Addr { return advertised(h.addr) }

// dial connects to addr; a host whose link is down is silent.
func (h *host) dial(ctx context.Context, addr string) (net.Conn, error) {
	h.net.mu.Lock()
	to, down := h.net.hosts[addr], h.cut
	if to == nil || to.cut {
		down = true
	}
	h.net.mu.Unlock()
	if down {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a, b := net.Pipe()
	select {
	case to.accept <- b:
	case <-to.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.conns, to.conns = append(h.conns, a, b), append(to.conns, a, b)
	return a, nil
}

// unplug takes the host's link down and ends its connections.
func (h *host) unplug(down bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.cut = down
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
}

// manager is one member of a test's group.
type manager struct {
	*Log
	t     testing.TB
	id    string
	dir   string
	store *store.Store
	host  *host
	stop  context.CancelFunc
	done  chan error
}

func (n *network) manager(t testing.TB, id, dir string, change func(*Config)) *manager {
	t.Helper()
	m := &manager{t: t, id: id, dir: dir, store: store.New(), host: n.listen(id), done: make(chan error, 1)}
	keys, err := OpenKeys(filepath.Join(dir, "keys"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		ID: id, Addr: id, Dir: dir, Keys: keys, Store: m.store, Listener: m.host, Dial: m.host.dial,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if testing.Verbose() && os.Getenv("RAFT_DEBUG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", id)
	}
	if change != nil {
		change(&cfg)
	}
	if m.Log, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.done <- m.Run(ctx) }()
	return m
}

// end stops the manager in order.
func (m *manager) end() {
	m.t.Helper()
	m.stop()
	if err := <-m.done; err != nil {
		m.t.Errorf("%s: %v", m.id, err)
	}
}

func named(name string) store.Change {
	return store.CreateService(&cluster.Service{ID: "id-" + name, Spec: &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}}})
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func (m *manager) has(name string) bool { return m.store.View().ServiceByName(name) != nil }

func leaderOf(t testing.TB, ms ...*manager) *manager {
	t.Helper()
	var leader *manager
	until(t, "a leader", func() bool {
		for _, m := range ms {
			if m.Leading() && m.Propose(t.Context()) == nil {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

// three makes a group of three managers, the first of them leading.
func three(t testing.TB, n *network) []*manager {
	t.Helper()
	var ms []*manager
	for _, id := range []string{"m1", "m2", "m3"} {
		ms = append(ms, n.manager(t, id, t.TempDir(), nil))
	}
	if err := ms[0].Bootstrap(); err != nil {
		t.Fatal(err)
	}
	leaderOf(t, ms[0])
	for _, m := range ms[1:] {
		if err := ms[0].AddVoter(t.Context(), m.id, m.id); err != nil {
			t.Fatal(err)
		}
	}
	return ms
}

func TestLostLeaderIsReplacedWithinTwoSeconds(t *testing.T) {
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			n := &network{hosts: map[string]*host{}}
			ms := three(t, n)
			if err := ms[0].Propose(t.Context(), named("before")); err != nil {
				t.Fatal(err)
			}
			lost := time.Now()
			ms[0].host.unplug(true)
			next := leaderOf(t, ms[1], ms[2])
			if err := next.Propose(t.Context(), named("after")); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(lost); d > 2*time.Second {
				t.Errorf("writes are taken %v after the leader was lost", d)
			}
			if !next.has("before") {
				t.Error("a confirmed write is lost")
			}
			// The old leader notices by itself, refuses writes, and catches up.
			until(t, "the old leader steps down", func() bool { return !ms[0].Leading() })
			if err := ms[0].Propose(t.Context(), named("stray")); !errors.Is(err, cluster.ErrNotLeader) {
				t.Errorf("a write at a lost leader: %v", err)
			}
			for _, m := range next.Members() {
				if m.Reachable != (m.ID != "m1") {
					t.Errorf("%s reachable: %v", m.ID, m.Reachable)
				}
			}
			ms[0].host.unplug(false)
			until(t, "the old leader catches up", func() bool { return ms[0].has("after") })
			if !next.Leading() {
				t.Error("its return cost the new leader its leadership")
			}
			for _, m := range ms {
				m.end()
			}
		})
	}
}

func TestLeadershipIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: map[string]*host{}}
		ms := three(t, n)
		if !<-ms[0].Leadership() {
			t.Fatal("the first leader was not told")
		}
		if err := ms[0].StepDown(); err != nil {
			t.Fatal(err)
		}
		if <-ms[0].Leadership() {
			t.Fatal("the old leader was not told")
		}
		leader := leaderOf(t, ms...)
		if leader == ms[0] || !<-leader.Leadership() {
			t.Fatal("the new leader was not told")
		}
		began := time.Now()
		leader.end() // an orderly stop hands over at once
		rest := []*manager{}
		for _, m := range ms {
			if m != leader {
				rest = append(rest, m)
			}
		}
		leaderOf(t, rest...)
		if d := time.Since(began); d > 500*time.Millisecond {
			t.Errorf("an orderly stop left the swarm without a leader for %v", d)
		}
		for _, m := range rest {
			m.end()
		}
	})
}

func TestProposalsAreMadeOrRefusedOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: map[string]*host{}}
		ms := three(t, n)
		errs := make([]error, 200)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = ms[0].Propose(t.Context(), named(fmt.Sprintf("s%d", i%100))) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if !errdefs.IsAlreadyExists(err) {
				t.Errorf("refused with %v", err)
			}
		}
		if made != 100 || len(ms[0].store.View().Services()) != 100 {
			t.Errorf("%d made, %d there; want 100 of each", made, len(ms[0].store.View().Services()))
		}
		if err := ms[1].Propose(t.Context(), named("x")); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("a write at a follower: %v", err)
		}
		for _, m := range ms {
			until(t, "all alike", func() bool { return m.store.View().Index() == ms[0].store.View().Index() })
		}
		for _, m := range ms {
			m.end()
		}
	})
}

func TestNewLeaderHearsTheOthersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: map[string]*host{}}
		ms := three(t, n)
		if err := ms[0].StepDown(); err != nil {
			t.Fatal(err)
		}
		lead := leaderOf(t, ms...)
		for _, m := range ms {
			lead.transport.forget(raft.ServerID(m.cfg.ID)) // nobody has answered yet
		}
		if err := lead.CheckRemove(t.Context(), "m1"); err != nil {
			t.Errorf("the last leader leaves as soon as there is a new one: %v", err)
		}
		for _, m := range ms {
			m.end()
		}
	})
}

func TestMembersKeepTheQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: map[string]*host{}}
		ms := three(t, n)
		if err := ms[0].AddVoter(t.Context(), "ghost", "ghost"); !errdefs.IsUnavailable(err) {
			t.Errorf("a manager that does not answer: %v", err)
		}
		if got := len(ms[0].Members()); got != 3 {
			t.Errorf("%d members after that, want 3", got)
		}
		ms[2].host.unplug(true)
		until(t, "m3 is seen unreachable", func() bool { return !ms[0].reachable("m3") })
		if err := ms[0].RemoveServer(t.Context(), "m2"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("removing the second of two left: %v", err)
		}
		if err := ms[0].RemoveServer(t.Context(), "m3"); err != nil {
			t.Errorf("removing the lost one: %v", err)
		}
		if err := ms[0].RemoveServer(t.Context(), "m1"); !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("the leader removing itself: %v", err)
		}
		leader := leaderOf(t, ms[0], ms[1])
		if leader != ms[1] {
			t.Fatal("leadership was not handed over")
		}
		if err := leader.RemoveServer(t.Context(), "m1"); err != nil {
			t.Errorf("removing the old leader: %v", err)
		}
		if err := leader.CheckRemove(t.Context(), "m2"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("removing the last: %v", err)
		}
		if err := leader.Propose(t.Context(), named("alone")); err != nil {
			t.Error(err)
		}
		for _, m := range ms {
			m.end()
		}
	})
}

func TestStateIsKeptOnDiskAndSealed(t *testing.T) {
	n := &network{hosts: map[string]*host{}}
	dir := t.TempDir()
	quick := func(c *Config) { c.Tick = 50 * time.Millisecond }
	m := n.manager(t, "m1", dir, quick)
	if !m.Fresh() {
		t.Error("an empty log is not fresh")
	}
	if err := m.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	leaderOf(t, m)
	for i := range 600 {
		if err := m.Propose(t.Context(), named(fmt.Sprintf("plaintext-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := m.cfg.Keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := m.Propose(t.Context(), named("plaintext-last")); err != nil {
		t.Fatal(err)
	}
	m.end()
	files := 0
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d.Type().IsRegular() {
			files++
			b, err := os.ReadFile(path)
			if err != nil || bytes.Contains(b, []byte("plaintext")) {
				t.Errorf("%s holds plain text, or %v", path, err)
			}
		}
		return nil
	})
	if files < 3 {
		t.Errorf("only %d files", files)
	}

	m = n.manager(t, "m1", dir, quick)
	leaderOf(t, m)
	if got := len(m.store.View().Services()); got != 601 || m.Fresh() {
		t.Errorf("%d services after a restart, want 601", got)
	}
	// A manager that joins late gets the snapshot and what followed.
	late := n.manager(t, "m2", t.TempDir(), quick)
	if err := m.AddVoter(t.Context(), "m2", "m2"); err != nil {
		t.Fatal(err)
	}
	until(t, "the late one has all", func() bool { return len(late.store.View().Services()) == 601 })
	late.end()
	m.end()

	// Alone, the second of two members has no quorum, but can start anew.
	m = n.manager(t, "m2", late.dir, func(c *Config) { quick(c); c.ForceNewCluster = true })
	leaderOf(t, m)
	if got := m.Members(); len(got) != 1 || len(m.store.View().Services()) != 601 {
		t.Errorf("after force-new-cluster: %d members, %d services", len(got), len(m.store.View().Services()))
	}
	m.end()
}

// TestLargeEntries writes more than a segment holds in one entry.
func TestLargeEntries(t *testing.T) {
	n := &network{hosts: map[string]*host{}}
	dir := t.TempDir()
	quick := func(c *Config) { c.Tick = 50 * time.Millisecond }
	m := n.manager(t, "m1", dir, quick)
	if err := m.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	leaderOf(t, m)
	large := func(id string, size int) store.Change {
		return store.CreateConfig(&cluster.Config{ID: id, Spec: &swarm.ConfigSpec{Annotations: swarm.Annotations{Name: id}, Data: make([]byte, size)}})
	}
	for id, size := range map[string]int{"a": 10 << 20, "b": 1 << 20, "c": 10 << 20, "d": 1} {
		if err := m.Propose(t.Context(), large(id, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Propose(t.Context(), large("huge", 20<<20)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an entry that is too large: %v", err)
	}
	m.end()
	m = n.manager(t, "m1", dir, quick)
	leaderOf(t, m)
	if got := len(m.store.View().Configs()); got != 4 {
		t.Errorf("%d configs after a restart, want 4", got)
	}
	m.end()
}

func TestLimitsChangeAtRunTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: map[string]*host{}}
		m := n.manager(t, "m1", t.TempDir(), nil)
		if err := m.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		leaderOf(t, m)
		if err := m.SetLimits(Limits{SnapshotEvery: 10, KeepOld: 1}); err != nil {
			t.Fatal(err)
		}
		for round := range 4 {
			for i := range 20 {
				if err := m.Propose(t.Context(), named(fmt.Sprintf("s%d-%d", round, i))); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(3 * snapshotCheck)
		}
		metas, err := m.snaps.List()
		if err != nil || len(metas) != 2 {
			t.Errorf("%d snapshots kept (%v), want 2", len(metas), err)
		}
		m.end()
	})
}

func TestKeysAreWrapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, err := OpenKeys(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := k.seal([]byte("text"), []byte("place"))
	kek := bytes.Repeat([]byte{7}, KeySize)
	if err := errors.Join(k.Rotate(), k.Rewrap(kek)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(path, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("without the key: %v", err)
	}
	if _, err := OpenKeys(path, bytes.Repeat([]byte{8}, KeySize)); !errors.Is(err, ErrLocked) {
		t.Errorf("with another key: %v", err)
	}
	k, err = OpenKeys(path, kek)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.open(old, []byte("place")); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := k.open(old, []byte("elsewhere")); err == nil {
		t.Error("sealed text opens in another place")
	}
	if err := k.Forget(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.open(old, []byte("place")); err == nil {
		t.Error("a forgotten key still opens")
	}
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add(encodeFrame([][]byte{[]byte("a"), []byte("bc")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = decodeFrame(b, func([]byte) {})
	})
}
