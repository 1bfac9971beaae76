package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc/test/bufconn"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

// world is managers and nodes in one process, on a network in memory. There is
// one store: what is under test is the sessions, not Raft.
type world struct {
	t     *testing.T
	root  *pki.Root
	store *store.Store
	log   *slog.Logger

	mu     sync.Mutex
	index  uint64
	hosts  map[string]*bufconn.Listener
	cut    map[string]bool // addresses that do not answer
	leader string          // node id
	voters map[string]string
	dead   []string
	deadCh chan struct{}
	answer bool          // what a probe finds
	lag    time.Duration // how long a write takes
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("DISPATCH_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := &world{t: t, root: root, store: store.New(), log: log, hosts: map[string]*bufconn.Listener{},
		cut: map[string]bool{}, voters: map[string]string{}, deadCh: make(chan struct{}, 1)}
	w.write(store.PutCluster(&cluster.Cluster{
		ID: "c1", Spec: &swarm.Spec{},
		RootCA: cluster.RootCA{Cert: root.CertPEM(), Key: key, WorkerToken: pki.NewToken(root), ManagerToken: pki.NewToken(root)},
	}))
	return w
}

func (w *world) Propose(_ context.Context, changes ...store.Change) error {
	time.Sleep(w.lag)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	return w.store.Apply(w.index, store.Entry{At: time.Now(), Changes: changes})
}

func (w *world) write(changes ...store.Change) {
	w.t.Helper()
	if err := w.Propose(w.t.Context(), changes...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) AddVoter(_ context.Context, id, addr string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.voters[id] = addr
	return nil
}

func (w *world) RemoveServer(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.voters, id)
	return nil
}

// Dead and Watch implement Suspects.
func (w *world) Dead() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.dead)
}

func (w *world) Watch() (<-chan struct{}, func()) { return w.deadCh, func() {} }

func (w *world) suspect(answers bool, ids ...string) {
	w.mu.Lock()
	w.dead, w.answer = ids, answers
	w.mu.Unlock()
	w.deadCh <- struct{}{}
}

func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	l, cut := w.hosts[addr], w.cut[addr]
	w.mu.Unlock()
	if l == nil || cut {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	return l.DialContext(ctx)
}

func (w *world) identity(nodeID string, role swarm.NodeRole, validity time.Duration) *pki.Identity {
	w.t.Helper()
	csr, key, err := pki.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.root.Issue(csr, pki.Subject{NodeID: nodeID, Role: role, ClusterID: "c1"}, time.Now(), validity)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := pki.NewIdentity("", w.root, cert, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// addNode puts a node in the store as it is after it was admitted.
func (w *world) addNode(id string, role swarm.NodeRole) {
	w.t.Helper()
	n := &cluster.Node{ID: id, Spec: &swarm.NodeSpec{Role: role, Availability: swarm.NodeAvailabilityActive}, Role: role,
		Status: cluster.NodeStatus{State: swarm.NodeStateUnknown}}
	if role == swarm.NodeRoleManager {
		n.Manager = &cluster.Manager{RaftID: id, Addr: id + ":2377"}
	}
	w.write(store.CreateNode(n))
}

// manager runs a manager's port and server; it leads when lead is called.
func (w *world) manager(id string) *Server {
	w.t.Helper()
	addr := id + ":2377"
	lis := bufconn.Listen(1 << 16)
	w.mu.Lock()
	w.hosts[addr] = lis
	w.mu.Unlock()
	ident := w.identity(id, swarm.NodeRoleManager, 0)
	srv, err := New(Config{
		Store: w.store, Identity: ident, Propose: w, Members: w, Dial: w.dial, Log: w.log, Suspects: w,
		Leader: func() (string, string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.leader == "" {
				return "", ""
			}
			return w.leader, w.leader + ":2377"
		},
		Control: func(_ context.Context, m string, body []byte) ([]byte, error) {
			if m == "fail" {
				return nil, cluster.NotFoundf("service %s not found", body)
			}
			return append([]byte(m+":"), body...), nil
		},
		Probe: func(context.Context, *cluster.Node) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.answer
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	port := NewPort(lis, ident, func(pki.Peer) error { return nil }, w.log)
	w.run(port.Run)
	w.run(func(ctx context.Context) error { return srv.Run(ctx, port.RPC()) })
	w.run(func(ctx context.Context) error { // stands in for Raft: takes a probing handshake and drops it
		context.AfterFunc(ctx, func() { port.Raft().Close() })
		for {
			c, err := port.Raft().Accept()
			if err != nil {
				return nil
			}
			c.Close()
		}
	})
	return srv
}

// run runs f until the returned function is called, at the latest at the test's end.
func (w *world) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("ended with %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// lead makes a manager the leader until the returned function is called.
func (w *world) lead(s *Server) (stop func()) {
	id := s.Identity.Peer().NodeID
	w.mu.Lock()
	w.leader = id
	w.mu.Unlock()
	end := w.run(s.Lead)
	return func() {
		w.mu.Lock()
		if w.leader == id {
			w.leader = ""
		}
		w.mu.Unlock()
		end()
		w.store.ForgetObserved()
	}
}

// fakeAgent follows what it is told and lets the test say what it observes.
type fakeAgent struct {
	mu       sync.Mutex
	items    map[string]cluster.Item // kind and id
	assigns  int
	complete int
	statuses map[string]cluster.Status
	stuck    bool // Assign does not return
	changed  chan struct{}
}

func itemKey(it cluster.Item) string { return string('0'+rune(it.Kind)) + " " + it.ID }

func (a *fakeAgent) Assign(ctx context.Context, complete bool, items []cluster.Item) error {
	a.mu.Lock()
	if complete {
		a.items = map[string]cluster.Item{}
		a.complete++
	}
	a.assigns++
	for _, it := range items {
		k := itemKey(it)
		if it.Task == nil && it.Network == nil && it.Peer == nil && it.Endpoint == nil && it.Service == nil && it.Secret == nil && it.Config == nil {
			delete(a.items, k)
		} else {
			a.items[k] = it
		}
	}
	stuck := a.stuck
	a.mu.Unlock()
	if stuck {
		<-ctx.Done()
	}
	return nil
}

func (a *fakeAgent) Statuses() map[string]cluster.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.statuses)
}

func (a *fakeAgent) Changed() <-chan struct{} { return a.changed }

func (a *fakeAgent) observe(task string, st cluster.Status) {
	a.mu.Lock()
	st.At = time.Now()
	a.statuses[task] = st
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *fakeAgent) keys() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.items))
}

func (a *fakeAgent) item(kind cluster.ItemKind, id string) *cluster.Item {
	a.mu.Lock()
	defer a.mu.Unlock()
	it, ok := a.items[itemKey(cluster.Item{Kind: kind, ID: id})]
	if !ok {
		return nil
	}
	return &it
}

// fakeNode is a node with its client.
type fakeNode struct {
	*fakeAgent
	client  *Client
	stop    func()
	mu      sync.Mutex
	session Session
	lost    []error
}

// losses returns why sessions ended.
func (n *fakeNode) losses() []error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.lost)
}

// told returns what the node was last told of the swarm.
func (n *fakeNode) told() Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.session
}

func (a *fakeAgent) completes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.complete
}

// entries is how long the log is.
func (w *world) entries() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index
}

func (w *world) votes() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.voters)
}

func (w *world) node(id string, role swarm.NodeRole, addrs ...string) *fakeNode {
	w.t.Helper()
	return w.nodeAs(w.identity(id, role, 0), addrs...)
}

func (w *world) nodeAs(ident *pki.Identity, addrs ...string) *fakeNode {
	w.t.Helper()
	id := ident.Peer().NodeID
	n := &fakeNode{fakeAgent: &fakeAgent{items: map[string]cluster.Item{}, statuses: map[string]cluster.Status{}, changed: make(chan struct{}, 1)}}
	var managers []Manager
	for _, a := range addrs {
		managers = append(managers, Manager{Addr: a})
	}
	var err error
	n.client, err = NewClient(ClientConfig{
		Identity: ident, Agent: n.fakeAgent, Managers: managers, Dial: w.dial, Log: w.log.With("node", id),
		Hello: func() Hello {
			return Hello{Description: &swarm.NodeDescription{Hostname: id}, Addr: netip.MustParseAddr("10.9.0.1"), DataAddr: netip.MustParseAddr("10.9.0.2")}
		},
		OnSession: func(s Session) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.session = s
		},
		OnConnect: func(err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if err != nil {
				n.lost = append(n.lost, err)
			}
		},
		Streams: map[string]StreamHandler{"echo": func(_ context.Context, decode func(any) error, send func([]byte) error) error {
			var words []string
			if err := decode(&words); err != nil {
				return err
			}
			for _, word := range words {
				if word == "fail" {
					return cluster.NotFoundf("No such container: x")
				}
				if err := send([]byte(word)); err != nil {
					return err
				}
			}
			return nil
		}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n.stop = w.run(n.client.Run)
	return n
}

// service puts a service in the store, with a virtual address in a network.
func (w *world) service(id, network string) {
	w.t.Helper()
	spec := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: id}}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "busybox:1"}
	s := &cluster.Service{ID: id, Spec: spec}
	if network != "" {
		s.VIPs = []cluster.VIP{{NetworkID: network, Addr: netip.MustParseAddr("10.0.1.2")}}
	}
	w.write(store.CreateService(s))
}

func (w *world) network(id string, ingress bool) {
	w.t.Helper()
	w.write(store.CreateNetwork(&cluster.Network{
		ID: id, Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: id}, Ingress: ingress, Attachable: !ingress},
		Subnet: netip.MustParsePrefix("10.0.1.0/24"), VNI: 4096,
	}))
}

// task assigns a task of a service to a node.
func (w *world) task(id, service, node, network string, addr byte) {
	w.t.Helper()
	t := &cluster.Task{ID: id, ServiceID: service, SpecVersion: w.store.View().Service(service).SpecVersion, Slot: int(addr),
		NodeID: node, Desired: cluster.StateRunning, Status: cluster.Status{State: cluster.StateAssigned}}
	if network != "" {
		t.Networks = []cluster.Attachment{{NetworkID: network, Addr: netip.AddrFrom4([4]byte{10, 0, 1, addr})}}
	}
	w.write(store.CreateTask(t))
}

func (w *world) desire(task string, s cluster.State) {
	w.t.Helper()
	t := *w.store.View().Task(task)
	t.Desired = s
	w.write(store.UpdateTask(&t))
}

func (w *world) state(node string) swarm.NodeState { return w.store.View().Node(node).Status.State }

// bubble runs a test on a fake clock.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}
