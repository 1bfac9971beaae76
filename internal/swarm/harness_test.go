package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/dispatch"
)

// host is a machine on a loopback address of its own, with a node on it. Its
// tasks outlive the daemon, as containers do.
type host struct {
	*Node
	t    *testing.T
	name string
	ip   string
	dir  string
	stop func()

	mu    sync.Mutex
	cut   bool // the power is off: nothing gets in or out
	conns map[net.Conn]bool
	lis   []net.Listener
	tasks map[string]cluster.Status
	wants map[string]cluster.State
}

// newHost makes a machine and starts its daemon. network is the test's own part
// of 127/8.
func newHost(t *testing.T, network string, n int) *host {
	t.Helper()
	h := &host{
		t: t, name: fmt.Sprintf("host%d", n), ip: fmt.Sprintf("127.%s.%d", network, n),
		dir: filepath.Join(t.TempDir(), "swarm"), conns: map[net.Conn]bool{},
		tasks: map[string]cluster.Status{}, wants: map[string]cluster.State{},
	}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// start starts the daemon.
func (h *host) start() {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SWARM_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", h.name)
	}
	h.mu.Lock()
	h.cut = false
	h.mu.Unlock()
	h.Node = New(Config{
		Dir:      h.dir,
		NewAgent: func(string) Agent { return &fakeAgent{host: h, changed: make(chan struct{}, 1)} },
		Describe: func() api.NodeDescription {
			return api.NodeDescription{Hostname: h.name, Platform: api.Platform{OS: "linux", Architecture: "x86_64"},
				Resources: api.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Engine: api.EngineDescription{EngineVersion: "test"}}
		},
		Streams: map[string]dispatch.StreamHandler{"name": func(_ context.Context, _ func(any) error, send func([]byte) error) error {
			return send([]byte(h.name))
		}},
		Listen: h.listen, Dial: h.dial, Tick: 250 * time.Millisecond, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	node := h.Node
	go func() { done <- node.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				h.t.Errorf("%s: %v", h.name, err)
			}
		case <-time.After(20 * time.Second):
			stacks := make([]byte, 1<<20)
			h.t.Errorf("%s does not stop:\n%s", h.name, stacks[:runtime.Stack(stacks, true)])
		}
	})
}

// kill is a power cut: nobody is told, and nobody is answered.
func (h *host) kill() {
	h.mu.Lock()
	h.cut = true
	for c := range h.conns {
		c.Close()
	}
	for _, l := range h.lis {
		l.Close()
	}
	h.lis = nil
	h.mu.Unlock()
	h.stop()
}

func (h *host) listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lis = append(h.lis, l)
	return &hostListener{l, h}, nil
}

type hostListener struct {
	net.Listener
	h *host
}

func (l *hostListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.h.wire(c), nil
}

// dial opens a connection from the host's own address.
func (h *host) dial(ctx context.Context, addr string) (net.Conn, error) {
	h.mu.Lock()
	cut := h.cut
	h.mu.Unlock()
	if cut {
		return nil, errors.New("the power is off")
	}
	d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.ip)}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return h.wire(c), nil
}

// wire notes a connection, so that a power cut ends it.
func (h *host) wire(c net.Conn) net.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut {
		c.Close()
		return c
	}
	w := &hostConn{Conn: c, h: h}
	h.conns[w] = true
	return w
}

type hostConn struct {
	net.Conn
	h *host
}

func (c *hostConn) Close() error {
	err := c.Conn.Close()
	go func() { // kill holds the lock while it closes
		c.h.mu.Lock()
		defer c.h.mu.Unlock()
		delete(c.h.conns, c)
	}()
	return err
}

// fakeAgent runs tasks at once.
type fakeAgent struct {
	host    *host
	changed chan struct{}
}

func (a *fakeAgent) Assign(_ context.Context, complete bool, items []cluster.Item) error {
	h := a.host
	h.mu.Lock()
	defer h.mu.Unlock()
	named := map[string]bool{}
	for _, it := range items {
		if it.Kind != cluster.ItemTask {
			continue
		}
		if it.Task == nil {
			delete(h.tasks, it.ID)
			delete(h.wants, it.ID)
			continue
		}
		named[it.ID] = true
		h.wants[it.ID] = it.Task.Desired
		st := h.tasks[it.ID]
		switch {
		case st.State.Terminal():
		case it.Task.Desired > cluster.StateRunning:
			st = cluster.Status{State: cluster.StateShutdown, At: time.Now()}
		case it.Task.Desired == cluster.StateRunning && st.State != cluster.StateRunning:
			st = cluster.Status{State: cluster.StateRunning, Serving: true, At: time.Now(), ContainerID: "c" + it.ID}
		case it.Task.Desired == cluster.StateReady && st.State < cluster.StateReady:
			st = cluster.Status{State: cluster.StateReady, At: time.Now()}
		}
		h.tasks[it.ID] = st
	}
	if complete {
		for id := range h.tasks {
			if !named[id] {
				delete(h.tasks, id)
			}
		}
	}
	select {
	case a.changed <- struct{}{}:
	default:
	}
	return nil
}

func (a *fakeAgent) Statuses() map[string]cluster.Status {
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	return maps.Clone(a.host.tasks)
}

func (a *fakeAgent) Changed() <-chan struct{} { return a.changed }

func (a *fakeAgent) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (a *fakeAgent) Leave(context.Context) error {
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	clear(a.host.tasks)
	return nil
}

func (h *host) running() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, st := range h.tasks {
		if st.State == cluster.StateRunning {
			n++
		}
	}
	return n
}

// init makes a swarm on h.
func (h *host) init(spec api.Spec) string {
	h.t.Helper()
	id, err := h.Init(h.t.Context(), api.InitRequest{ListenAddr: h.ip + ":2377", AdvertiseAddr: h.ip, Spec: spec})
	if err != nil {
		h.t.Fatalf("%s: init: %v", h.name, err)
	}
	return id
}

// join joins h to the swarm that via is in.
func (h *host) join(via *host, role api.NodeRole) {
	h.t.Helper()
	if err := h.tryJoin(via, via.token(role)); err != nil {
		h.t.Fatalf("%s: join: %v", h.name, err)
	}
}

func (h *host) tryJoin(via *host, token string) error {
	return h.Join(h.t.Context(), api.JoinRequest{ListenAddr: h.ip + ":2377", RemoteAddrs: []string{via.ip + ":2377"}, JoinToken: token})
}

func (h *host) token(role api.NodeRole) string {
	h.t.Helper()
	c := h.view().Cluster()
	if role == api.NodeRoleManager {
		return c.RootCA.ManagerToken
	}
	return c.RootCA.WorkerToken
}

// nodes shows the swarm as h knows it: "host1 manager ready reachable". Which of
// the managers leads is not said, for on a busy machine it changes; how many do
// is, unless it is one.
func (h *host) nodes() map[string]string {
	c, err := h.Control()
	if err != nil {
		return nil
	}
	all, err := c.Nodes(context.Background(), nil)
	if err != nil {
		return nil
	}
	out, leaders := map[string]string{}, 0
	for _, n := range all {
		words := []string{string(n.Spec.Role), string(n.Status.State)}
		if m := n.ManagerStatus; m != nil {
			words = append(words, string(m.Reachability))
			if m.Leader {
				leaders++
			}
		}
		out[n.Description.Hostname] = strings.Join(words, " ")
	}
	if leaders != 1 {
		out["leaders"] = strconv.Itoa(leaders)
	}
	return out
}

// patience only ends a hang: no test asserts a time.
const patience = time.Minute

// eventually waits for a condition; what it last saw is told when it never comes.
func eventually(t *testing.T, what string, ok func() (bool, any)) {
	t.Helper()
	var last any
	for end := time.Now().Add(patience); time.Now().Before(end); {
		var good bool
		if good, last = ok(); good {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("never: %s; last: %v", what, last)
}
