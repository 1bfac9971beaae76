package overlay

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// TestHeldTwice: a host that hears no manager any more still runs the last
// holder of an address that was given again, and the rest of the swarm never
// meets it. When it hears of it, it takes its own away.
func TestHeldTwice(t *testing.T) {
	const addr = "10.0.1.30"
	l := newLab(t)
	startApp(l)
	l.tell(appPlan().endpoint("old", 3, addr, ""))
	ns, gw := l.hosts[3].container("old")
	l.hosts[3].attach("app", "old", ns, addr, "eth0", gw)
	l.serve(ns, "old", ":80")
	answers := func(want string, from ...string) {
		t.Helper()
		for _, ns := range from {
			for _, kind := range []string{"tcp", "udp"} {
				got, err := l.ask(ns, kind, addr+":80")
				if err != nil || !strings.HasPrefix(got, want) {
					t.Errorf("%s by %s: %q, %v; want %s", ns, kind, got, err, want)
				}
			}
		}
	}
	answers("old", "skov-c1", "skov-c2", "skov-c3")

	now := appPlan().endpoint("new", 2, addr, "")
	tell := func(hosts ...int) {
		t.Helper()
		for _, n := range hosts {
			if err := l.hosts[n].Apply(context.Background(), true, now.items(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell(1, 2)
	newNS, newGW := l.hosts[2].container("new")
	l.hosts[2].attach("app", "new", newNS, addr, "eth0", newGW)
	l.serve(newNS, "new", ":80")
	answers("new", "skov-c1", "skov-c2")
	quiet := l.chatter(ns, "skov-c2", "10.0.1.12:81") // on the new one's host
	answers("new", "skov-c1", "skov-c2")
	quiet()

	tell(3)
	if err := l.hosts[3].Detach(context.Background(), "app", "old"); err != nil {
		t.Fatal(err)
	}
	answers("new", "skov-c1", "skov-c2", "skov-c3")
	if t.Failed() {
		t.Log(l.log.String())
	}
}

// chatter sends UDP from one namespace to an address in another, all the time
// until the returned function is called. It returns when some has arrived.
func (l *lab) chatter(from, to, addr string) (quiet func()) {
	l.t.Helper()
	var out net.Conn
	err := l.in(from, func() (err error) { out, err = net.Dial("udp4", addr); return })
	if err != nil {
		l.t.Fatal(err)
	}
	var in net.PacketConn
	if err = l.in(to, func() (err error) { in, err = net.ListenPacket("udp4", addr); return }); err != nil {
		l.t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-every.C:
				_, _ = out.Write([]byte("x"))
			case <-end:
				return
			}
		}
	}()
	_ = in.SetReadDeadline(time.Now().Add(patience))
	for range 10 {
		if _, _, err := in.ReadFrom(make([]byte, 1)); err != nil {
			l.t.Error(err)
		}
	}
	return func() { close(end); <-ended; out.Close(); in.Close() }
}
