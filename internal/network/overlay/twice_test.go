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

	ctx, now := context.Background(), appPlan().endpoint("new", 2, addr, "")
	tell := func(hosts ...int) {
		t.Helper()
		for _, n := range hosts {
			if err := l.hosts[n].Apply(ctx, true, now.items(n)); err != nil {
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

	// The old one's host hears of it, and what is more, gets the address' third
	// holder while the second has left and the first is still there.
	tell(3)
	now = appPlan().endpoint("third", 3, addr, "")
	if err := l.hosts[2].Detach(ctx, "app", "new"); err != nil {
		t.Fatal(err)
	}
	tell(1, 2, 3)
	thirdNS, thirdGW := l.hosts[3].container("third")
	l.hosts[3].attach("app", "third", thirdNS, addr, "eth0", thirdGW)
	l.serve(thirdNS, "third", ":80")
	quiet = l.chatter(ns, "skov-c3", "10.0.1.13:81")
	answers("third", "skov-c1", "skov-c2", "skov-c3")
	quiet()
	if err := l.hosts[3].Detach(ctx, "app", "old"); err != nil {
		t.Fatal(err)
	}
	answers("third", "skov-c1", "skov-c2", "skov-c3")

	// Elsewhere again, and nobody of its former host is left.
	if err := l.hosts[3].Detach(ctx, "app", "third"); err != nil {
		t.Fatal(err)
	}
	now = appPlan().endpoint("fourth", 1, addr, "")
	tell(1, 2, 3)
	fourthNS, fourthGW := l.hosts[1].container("fourth")
	l.hosts[1].attach("app", "fourth", fourthNS, addr, "eth0", fourthGW)
	l.serve(fourthNS, "fourth", ":80")
	answers("fourth", "skov-c1", "skov-c2", "skov-c3")
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
