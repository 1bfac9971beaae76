package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

const web = "10.0.1.100:80"

func appPlan() *plan {
	p := &plan{net: cluster.WantedNetwork{
		ID: "app", Name: "app", Driver: "overlay", VNI: 0x1001, Port: 4789,
		Subnet: netip.MustParsePrefix("10.0.1.0/24"), Gateway: netip.MustParseAddr("10.0.1.1"),
	}}
	for i := 1; i <= 3; i++ {
		p.endpoint(fmt.Sprint("t", i), i, fmt.Sprint("10.0.1.1", i), "web", fmt.Sprint("web.", i, ".t", i))
	}
	p.services = []cluster.VirtualService{
		{NetworkID: "app", ServiceID: "web", Name: "web", Aliases: []string{"www"}, VIP: netip.MustParseAddr("10.0.1.100")},
		{NetworkID: "app", ServiceID: "none", Name: "none", VIP: netip.MustParseAddr("10.0.1.101")},
	}
	return p
}

// startApp tells the hosts of the network and runs a task on each.
func startApp(l *lab) *plan {
	p := appPlan()
	l.tell(p)
	for i := 1; i <= 3; i++ {
		ns, gw := l.hosts[i].container(fmt.Sprint("c", i))
		addr := fmt.Sprint("10.0.1.1", i)
		l.hosts[i].attach("app", fmt.Sprint("t", i), ns, addr, "eth0", gw)
		l.serve(ns, fmt.Sprint("t", i), ":80")
	}
	return p
}

func TestOverlay(t *testing.T) {
	l := newLab(t)
	p := startApp(l)
	t.Run("between hosts", func(t *testing.T) { testReach(t, l) })
	t.Run("virtual address", func(t *testing.T) { testVIP(t, l) })
	t.Run("no back end", func(t *testing.T) { testRefused(t, l, "10.0.1.101:80") })
	t.Run("packets of the MTU", func(t *testing.T) { testMTU(t, l) })
	t.Run("a back end leaves", func(t *testing.T) { testLeave(t, l, p) })
	t.Run("restart", func(t *testing.T) { testRestart(t, l, p) })
	t.Run("peer on a narrower path", func(t *testing.T) { testNarrow(t, l, p) })
	t.Run("flushed", func(t *testing.T) { testFlushed(t, l) })
	t.Run("encrypted", func(t *testing.T) { testEncrypted(t, l) })
	t.Run("leave swarm", func(t *testing.T) { testLeaveSwarm(t, l) })
	if t.Failed() {
		t.Log(l.log.String())
	}
}

func testReach(t *testing.T, l *lab) {
	for _, kind := range []string{"tcp", "udp", "udpun"} {
		for from := 1; from <= 3; from++ {
			for to := 1; to <= 3; to++ {
				got, err := l.ask(fmt.Sprint("skov-c", from), kind, fmt.Sprintf("10.0.1.1%d:80", to))
				if want := fmt.Sprintf("t%d 10.0.1.1%d", to, from); got != want || err != nil {
					t.Errorf("%s from %d to %d: %q, %v; want %q", kind, from, to, got, err, want)
				}
			}
		}
	}
	if err := l.ping("skov-c1", "10.0.1.13"); err != nil {
		t.Error(err)
	}
}

func testVIP(t *testing.T, l *lab) {
	for _, kind := range []string{"tcp", "udp", "udpun"} {
		for from := 1; from <= 3; from++ {
			seen := map[string]int{}
			for range 60 {
				got, err := l.ask(fmt.Sprint("skov-c", from), kind, web)
				if err != nil {
					t.Fatalf("%s from %d: %v", kind, from, err)
				}
				seen[strings.Fields(got)[0]]++
			}
			// Each is missed by chance once in 10^10 runs.
			if len(seen) != 3 {
				t.Errorf("%s from %d: back ends used: %v", kind, from, seen)
			}
		}
	}
	if err := l.ping("skov-c2", "10.0.1.100"); err != nil {
		t.Error(err)
	}
}

// A refusal is at once. For TCP it is a reset; UDP's sender in the same
// namespace hears it from the write itself.
func testRefused(t *testing.T, l *lab, addr string) {
	for kind, want := range map[string]error{"tcp": unix.ECONNREFUSED, "udp": unix.EPERM} {
		if got, err := l.ask("skov-c1", kind, addr); !errors.Is(err, want) {
			t.Errorf("%s to a service without tasks: %q, %v; want %v", kind, got, err, want)
		}
	}
}

func testMTU(t *testing.T, l *lab) {
	for _, n := range l.hosts[1].Networks() {
		if n.MTU != 1450 {
			t.Errorf("MTU is %d, want 1450", n.MTU)
		}
	}
	if out := l.ip("skov-c1", "link show eth0"); !strings.Contains(out, "mtu 1450") {
		t.Errorf("the task's interface: %s", out)
	}
	// busybox's ping cannot forbid fragments; the interface's MTU is the most
	// that goes out in one packet.
	if err := l.ping("skov-c1", "10.0.1.13", "-s", "1422"); err != nil {
		t.Error(err)
	}
}

func testLeave(t *testing.T, l *lab, p *plan) {
	gone := p.endpoints[2]
	gone.Serving = false
	// UDP flows that last, one a socket: most likely one of them with t3.
	var flows []*udpTalk
	for range 12 {
		flows = append(flows, l.talkUDP("skov-c1", web))
	}
	var kept []*talk
	for range 12 { // some of them with t3, but for one run in a hundred
		kept = append(kept, l.talk("skov-c1", web))
	}
	l.change(endpointItem(gone))
	for _, f := range flows {
		if err := f.moves("t3"); err != nil {
			t.Errorf("a UDP flow after t3 left: %v", err)
		}
		f.Close()
	}
	for _, c := range kept {
		if err := c.say(); err != nil {
			t.Errorf("an established connection: %v", err)
		}
		c.Close()
	}
	for _, kind := range []string{"tcp", "udp"} {
		for range 40 {
			got, err := l.ask("skov-c1", kind, web)
			if err != nil || strings.HasPrefix(got, "t3") {
				t.Fatalf("%s after t3 left: %q, %v", kind, got, err)
			}
		}
	}
	// It still can be reached by its own address until it is gone.
	if got, err := l.ask("skov-c1", "tcp", "10.0.1.13:80"); err != nil {
		t.Errorf("t3 by its own address: %q, %v", got, err)
	}
	l.change(cluster.Item{Kind: cluster.ItemEndpoint, ID: "app/t3"})
	_, err := l.ask("skov-c1", "tcp", "10.0.1.13:80")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a departed address: %v; want a refusal", err)
	}
	l.change(endpointItem(p.endpoints[2]))
	if got, err := l.ask("skov-c1", "tcp", "10.0.1.13:80"); err != nil {
		t.Errorf("t3 after its return: %q, %v", got, err)
	}
}

func testRestart(t *testing.T, l *lab, p *plan) {
	h := l.hosts[1]
	kept := map[string]*talk{}
	for _, task := range []string{"10.0.1.12", "10.0.1.13"} {
		kept[task] = l.talk("skov-c1", task+":80")
		defer kept[task].Close()
	}
	before := l.links(h.ns) + l.links("skov-c1")
	h.restart()
	// Until the manager is heard what was there goes on.
	h.attach("app", "t1", "skov-c1", "10.0.1.11", "eth0", nil)
	if got, err := l.ask("skov-c1", "tcp", web); err != nil {
		t.Errorf("before the first Apply: %q, %v", got, err)
	}
	// Meanwhile t2 left.
	rest := *p
	rest.endpoints = []cluster.Endpoint{p.endpoints[0], p.endpoints[2]}
	if err := h.Apply(context.Background(), true, rest.items(1)); err != nil {
		t.Fatal(err)
	}
	if after := l.links(h.ns) + l.links("skov-c1"); after != before {
		t.Errorf("links changed:\n%s\n%s", before, after)
	}
	for range 30 {
		got, err := l.ask("skov-c1", "tcp", web)
		if err != nil || strings.HasPrefix(got, "t2") {
			t.Fatalf("after the restart: %q, %v", got, err)
		}
	}
	if out := l.ip(h.ns, "neigh show dev skx-001001"); strings.Contains(out, "10.0.1.12 ") || !strings.Contains(out, "10.0.1.13 ") {
		t.Errorf("neighbours: %s", out)
	}
	if err := kept["10.0.1.13"].say(); err != nil {
		t.Errorf("a connection from before the restart: %v", err)
	}
	if err := kept["10.0.1.12"].say(); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection to a task that left during the restart: %v; want a reset", err)
	}
	l.tell(p)
}

// testNarrow: the way to one host gets narrower, and the network with it.
func testNarrow(t *testing.T, l *lab, p *plan) {
	for _, mtu := range []int{1400, 1500} {
		l.ip("skov-h1", fmt.Sprint("route replace 10.99.0.3 dev eth0 mtu ", mtu))
		l.tell(p)
		want := fmt.Sprint("mtu ", mtu-50, " ")
		for ns, link := range map[string]string{"skov-h1": "sk-001001", "skov-c1": "eth0"} {
			if out := l.ip(ns, "link show "+link); !strings.Contains(out, want) {
				t.Errorf("%s: %q is not in %s", ns, want, out)
			}
		}
	}
	l.ip("skov-h1", "route del 10.99.0.3 dev eth0")
}

func testEncrypted(t *testing.T, l *lab) {
	p := appPlan()
	p.net.ID, p.net.VNI, p.net.Encrypted = "secret", 0x1002, true
	p.endpoints, p.services = nil, nil
	l.change(p.items(1)...)
	err := l.hosts[1].Attach(context.Background(), AttachRequest{
		NetworkID: "secret", ID: "s1", Addr: netip.MustParseAddr("10.0.2.2"), NetNS: nsPath("skov-c1"), IfName: "eth1",
	})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("a place in an encrypted network: %v", err)
	}
	l.change(cluster.Item{Kind: cluster.ItemNetwork, ID: "secret"})
}

func testFlushed(t *testing.T, l *lab) {
	l.nft("skov-c1", "flush ruleset")
	l.ip("skov-h1", "link del sk-001001")
	if err := l.hosts[1].Repair(context.Background(), true); err != nil {
		t.Fatal(err)
	}
	testVIP(t, l)
}

func testLeaveSwarm(t *testing.T, l *lab) {
	h := l.hosts[1]
	if err := h.LeaveSwarm(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out := l.ip(h.ns, "-o link show"); strings.Contains(out, "sk-") || strings.Contains(out, "skx-") || strings.Contains(out, "skv") {
		t.Errorf("links are left: %s", out)
	}
	for _, ns := range []string{h.ns, "skov-c1"} {
		if out := l.nft(ns, "list tables"); strings.Contains(out, "skep-") {
			t.Errorf("%s: tables are left: %s", ns, out)
		}
	}
	if n := h.Networks(); len(n) != 0 {
		t.Errorf("networks are left: %v", n)
	}
}

func TestLookup(t *testing.T) {
	p := appPlan()
	p.services = append(p.services, cluster.VirtualService{NetworkID: "app", ServiceID: "db", Name: "db", Aliases: []string{"web"}})
	p.endpoint("d1", 1, "10.0.1.21", "db", "db.1.d1").endpoint("d2", 2, "10.0.1.22", "db", "db.2.d2")
	p.endpoint("x", 2, "10.0.1.30", "", "box", "shared")
	m, _ := model{}.apply(true, p.items(1))
	o := &Overlay{views: map[string]*view{"app": m["app"].view(nil, netip.MustParseAddr("10.99.0.1"))}}
	for name, want := range map[string]string{
		"web":       "10.0.1.100",
		"WEB.":      "10.0.1.100",
		"www":       "10.0.1.100",
		"tasks.web": "10.0.1.11 10.0.1.12 10.0.1.13",
		"tasks.www": "10.0.1.11 10.0.1.12 10.0.1.13",
		"db":        "10.0.1.21 10.0.1.22",
		"none":      "10.0.1.101",
		"web.2.t2":  "10.0.1.12",
		"box":       "10.0.1.30",
		"missing":   "-",
	} {
		addrs, ok := o.Lookup("app", name)
		slices.SortFunc(addrs, netip.Addr.Compare)
		got := strings.Trim(fmt.Sprint(addrs), "[]")
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for addr, want := range map[string]string{"10.0.1.100": "web", "10.0.1.12": "web.2.t2", "10.0.1.30": "box", "10.0.1.99": ""} {
		if got, _ := o.LookupAddr("app", netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}
