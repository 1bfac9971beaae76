package gossip

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// node runs a node on 127.0.0.x until the returned function is called.
func node(t *testing.T, id string, addr netip.Addr, key []byte, peers ...netip.Addr) (*Gossip, func()) {
	t.Helper()
	g := New(Config{NodeID: id, Addr: addr, Port: 17946, Log: slog.New(slog.DiscardHandler),
		Peers: func() []netip.Addr { return peers }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, key) }()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
	t.Cleanup(stop)
	return g, stop
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

func TestKeyLength(t *testing.T) {
	if err := New(Config{}).Run(t.Context(), []byte("short")); err == nil {
		t.Error("a short key was taken")
	}
}
