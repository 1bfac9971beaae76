package gossip

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sys/unix"
)

// node runs a node on 127.0.0.x until the returned function is called.
func node(t *testing.T, id string, addr netip.Addr, key []byte, peers ...netip.Addr) (*Gossip, func()) {
	t.Helper()
	g := New(Config{NodeID: id, Addr: addr, Port: 17946, Log: slog.New(slog.DiscardHandler),
		Peers: func() []netip.Addr { return peers }})
	return g, run(t, g, key)
}

// run has a node gossip until the returned function is called.
func run(t *testing.T, g *Gossip, key []byte) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, key) }()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", g.cfg.NodeID, err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatalf("not within 20 s: %s", what)
}

func TestDeadAndBack(t *testing.T) {
	key := make([]byte, 32)
	a, b := netip.MustParseAddr("127.46.0.1"), netip.MustParseAddr("127.46.0.2")
	ga, _ := node(t, "a", a, key)
	watch, end := ga.Watch()
	defer end()
	_, stop := node(t, "b", b, key, a)
	eventually(t, "a hears of b", func() bool { return slices.Equal(ga.Alive(), []string{"a", "b"}) })
	stop()
	eventually(t, "b was lost", func() bool { return slices.Equal(ga.Dead(), []string{"b"}) })
	select {
	case <-watch:
	default:
		t.Error("the change was not signalled")
	}
	node(t, "b", b, key, a)
	eventually(t, "b came back", func() bool { return len(ga.Dead()) == 0 })
}

func TestHostAnswers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if !HostAnswers(ctx, netip.MustParseAddr("127.46.0.9"), 1) {
		t.Error("a host that refuses is there")
	}
	gone, cancel2 := context.WithCancel(t.Context())
	cancel2()
	if HostAnswers(gone, netip.MustParseAddr("127.46.0.9"), 1) {
		t.Error("no answer is no host")
	}
}

// TestHostThatIsSilent: one that answers nothing is given up although the caller
// has all the time in the world. A listener whose queue is full is such a one.
func TestHostThatIsSilent(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	addr := netip.MustParseAddr("127.46.0.8")
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(at.(*unix.SockaddrInet4).Port)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for n := 0; HostAnswers(ctx, addr, port); n++ { // nobody accepts: each takes a place in the queue
		if n == 100 {
			t.Fatal("a queue without end")
		}
	}
	if ctx.Err() != nil {
		t.Error("it was waited for as long as the caller had time")
	}
}

// TestStrangers: who has not the key is no member and hears nothing, whether he
// speaks in clear or with a key of his own; and no name is on the wire in clear.
func TestStrangers(t *testing.T) {
	key, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	a, b, c, d := netip.MustParseAddr("127.46.0.1"), netip.MustParseAddr("127.46.0.2"), netip.MustParseAddr("127.46.0.3"), netip.MustParseAddr("127.46.0.4")
	wire := &tap{}
	ga := New(Config{NodeID: "secret-a", Addr: a, Port: 17946, Log: slog.New(slog.DiscardHandler), Peers: func() []netip.Addr { return nil }})
	ga.cfg.Transport = wire.over(t, a)
	run(t, ga, key)
	gc, _ := node(t, "secret-c", c, other, a)
	clear := memberlist.DefaultLANConfig()
	clear.Name, clear.BindAddr, clear.BindPort, clear.AdvertisePort = "secret-d", d.String(), 17946, 17946
	clear.Logger = log.New(io.Discard, "", 0)
	md, err := memberlist.Create(clear)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = md.Shutdown() })
	if _, err := md.Join([]string{netip.AddrPortFrom(a, 17946).String()}); err == nil {
		t.Error("who speaks in clear was let in")
	}
	node(t, "secret-b", b, key, a)
	eventually(t, "a hears of b", func() bool { return slices.Equal(ga.Alive(), []string{"secret-a", "secret-b"}) })
	eventually(t, "packets", func() bool { return wire.len() > 10 })
	for who, alive := range map[string][]string{"a": ga.Alive(), "c": gc.Alive()} {
		if slices.Contains(alive, "secret-d") || slices.Contains(alive, "secret-a") && slices.Contains(alive, "secret-c") {
			t.Errorf("%s took %v for members", who, alive)
		}
	}
	if md.NumMembers() != 1 {
		t.Errorf("who speaks in clear has heard of %d members", md.NumMembers())
	}
	if wire.holds("secret-") {
		t.Error("names are on the wire in clear")
	}
}

// tap keeps what a node sends.
type tap struct {
	memberlist.NodeAwareTransport
	mu   sync.Mutex
	sent [][]byte
}

func (w *tap) over(t *testing.T, addr netip.Addr) *tap {
	t.Helper()
	real, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{addr.String()}, BindPort: 17946, Logger: log.New(io.Discard, "", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.NodeAwareTransport = real
	return w
}

func (w *tap) note(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, bytes.Clone(b))
}

func (w *tap) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}

func (w *tap) holds(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.sent, func(b []byte) bool { return bytes.Contains(b, []byte(text)) })
}

func (w *tap) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	w.note(b)
	return w.NodeAwareTransport.WriteToAddress(b, addr)
}

func TestKeyLength(t *testing.T) {
	if err := New(Config{}).Run(t.Context(), []byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}
