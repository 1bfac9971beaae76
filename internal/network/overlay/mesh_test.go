package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// ingressPlan publishes 8080 for a service whose one task is on host 2.
func ingressPlan() *plan {
	p := &plan{
		net: cluster.WantedNetwork{
			ID: "ingress", Name: "ingress", Driver: "overlay", VNI: 0x1000, Port: 4789, Ingress: true,
			Subnet: netip.MustParsePrefix("10.0.9.0/24"), Gateway: netip.MustParseAddr("10.0.9.254"),
		},
		nodeAddrs: [4]string{"", "10.0.9.1", "10.0.9.2", "10.0.9.3"},
	}
	p.endpoint("m2", 2, "10.0.9.12", "web")
	publish := func(proto string, port, target uint32) swarm.PortConfig {
		return swarm.PortConfig{
			Protocol: network.IPProtocol(proto), PublishedPort: port, TargetPort: target,
			PublishMode: swarm.PortConfigPublishModeIngress,
		}
	}
	p.services = []cluster.VirtualService{{
		NetworkID: "ingress", ServiceID: "web", Name: "web",
		Ports: []swarm.PortConfig{publish("tcp", 8080, 80), publish("udp", 8080, 80)},
	}, {
		NetworkID: "ingress", ServiceID: "none", Name: "none",
		Ports: []swarm.PortConfig{publish("tcp", 8081, 80), publish("udp", 8081, 80)},
	}}
	return p
}

// startMesh runs the task on host 2, and one of another service on host 1.
func startMesh(l *lab) *plan {
	p := ingressPlan()
	p.endpoint("o1", 1, "10.0.9.11", "other")
	l.tell(p)
	for i, addr := range map[int]string{1: "10.0.9.11", 2: "10.0.9.12"} {
		ns, gw := l.hosts[i].container(fmt.Sprint("c", i))
		l.hosts[i].attach("ingress", p.endpoints[map[int]int{2: 0, 1: 1}[i]].TaskID, ns, addr, "eth0", gw)
		l.serve(ns, fmt.Sprint("m", i), ":80")
	}
	return p
}

// meshPaths are who asks whom, and the address the task is to see.
var meshPaths = []struct{ from, to, client string }{
	{"cl1", "10.99.0.1", "10.99.0.100"},
	{"cl2", "10.99.0.1", "192.0.2.10"},
	{"cl1", "10.99.0.2", "10.99.0.100"},
	{"cl2", "10.99.0.2", "192.0.2.10"},
	{"cl2", "10.99.0.3", "192.0.2.10"},
	{"h1", "127.0.0.1", "10.0.9.1"},
	{"h1", "10.99.0.1", "10.99.0.1"},
	{"h1", "10.99.0.3", "10.99.0.1"},
	{"h2", "127.0.0.1", "10.0.9.2"},
	{"h2", "10.99.0.2", "10.99.0.2"},
	{"h2", "10.99.0.1", "10.99.0.2"},
	{"c2", "172.18.0.1", "10.0.9.2"}, // the task itself
	{"c2", "10.99.0.2", "10.0.9.2"},
	{"c2", "10.99.0.1", "10.99.0.2"}, // leaves its node by the gateway
	{"c1", "172.18.0.1", "10.0.9.1"}, // another task
}

func TestMesh(t *testing.T) {
	l := newLab(t)
	p := startMesh(l)
	t.Run("45 paths", func(t *testing.T) { testPaths(t, l) })
	t.Run("strict reverse path filter", func(t *testing.T) { testStrict(t, l) })
	t.Run("large without ICMP", func(t *testing.T) { testLarge(t, l) })
	t.Run("narrow path to the client", func(t *testing.T) { testNarrowClient(t, l) })
	t.Run("nobody listens", func(t *testing.T) { testDeaf(t, l) })
	t.Run("from another bridge", func(t *testing.T) { testLocalBridge(t, l) })
	t.Run("no back end", func(t *testing.T) { testMeshRefused(t, l) })
	t.Run("outward", func(t *testing.T) { testOutward(t, l) })
	t.Run("restart", func(t *testing.T) { testMeshRestart(t, l, p) })
	t.Run("under load", func(t *testing.T) { testUnderLoad(t, l, p) })
	t.Run("a back end moves", func(t *testing.T) { testMeshMove(t, l, p) })
	t.Run("a back end vanishes", func(t *testing.T) { testMeshVanish(t, l) })
	t.Run("port in use", func(t *testing.T) { testConflict(t, l, p) })
	t.Run("leave swarm", func(t *testing.T) {
		if err := l.hosts[2].LeaveSwarm(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, ns := range []string{"skov-h2", "skov-c2"} {
			left := l.nft(ns, "list tables") + l.ip(ns, "-o link show") + l.ip(ns, "rule show")
			for _, ours := range []string{"skep-", "sk-", "skx-", "skv", "101"} {
				if strings.Contains(left, ours) {
					t.Errorf("%s: %q is left:\n%s", ns, ours, left)
				}
			}
		}
	})
	if t.Failed() {
		t.Log(l.log.String())
	}
}

func testPaths(t *testing.T, l *lab) {
	good := 0
	for _, kind := range []string{"tcp", "udp", "udpun"} {
		for _, p := range meshPaths {
			ok := true
			for range 5 {
				got, err := l.ask("skov-"+p.from, kind, p.to+":8080")
				if want := "m2 " + p.client; got != want || err != nil {
					t.Errorf("%s from %s to %s: %q, %v; want %q", kind, p.from, p.to, got, err, want)
					ok = false
					break
				}
			}
			if ok {
				good++
			}
		}
	}
	t.Logf("%d of 45 paths", good)
}

// testStrict: distributions set 1, for hosts and so for new namespaces.
func testStrict(t *testing.T, l *lab) {
	for i := 1; i <= 3; i++ {
		for _, conf := range []string{"all", "eth0", "gwb", "sk-001000"} {
			l.write(fmt.Sprint("skov-h", i), "/proc/sys/net/ipv4/conf/"+conf+"/rp_filter", "1")
		}
	}
	for _, ns := range []string{"skov-c1", "skov-c2"} {
		l.write(ns, "/proc/sys/net/ipv4/conf/all/rp_filter", "1")
		l.write(ns, "/proc/sys/net/ipv4/conf/eth9/rp_filter", "1")
	}
	testPaths(t, l)
}

// testLarge: no size of packet may depend on ICMP errors, which firewalls drop.
func testLarge(t *testing.T, l *lab) {
	const rules = "table ip deaf {\n chain in {\n type filter hook input priority 0\n icmp type destination-unreachable drop\n }\n}\n"
	for _, ns := range []string{"skov-cl2", "skov-c2"} {
		l.nft(ns, rules)
	}
	testBulk(t, l)
	for _, ns := range []string{"skov-cl2", "skov-c2"} {
		l.nft(ns, "delete table ip deaf")
	}
}

func testBulk(t *testing.T, l *lab) {
	for _, node := range []string{"10.99.0.1", "10.99.0.2"} {
		c := l.talk("skov-cl2", node+":8080")
		const size = 1 << 20
		go func() { _, _ = c.Write(make([]byte, size)) }()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.ReadFull(c, make([]byte, size)); err != nil {
			t.Errorf("by %s: %d bytes came back: %v", node, n, err)
		}
		c.Close()
	}
}

// testNarrowClient: a router's word on the size of packets finds its way to the
// task.
func testNarrowClient(t *testing.T, l *lab) {
	l.ip("skov-u", "route add 192.0.2.10/32 dev uc2 mtu lock 1300")
	testBulk(t, l)
	l.ip("skov-u", "route del 192.0.2.10/32 dev uc2")
	if out := l.ip("skov-c2", "route get 192.0.2.10"); !strings.Contains(out, "mtu 1300") {
		t.Errorf("the task did not need to learn of it: %s", out)
	}
	l.ip("skov-c2", "route flush cache")
}

// testDeaf: a task that does not listen on the port says so to the client.
func testDeaf(t *testing.T, l *lab) {
	s := ingressPlan().services[0]
	s.ServiceID, s.Name = "deaf", "deaf"
	for i := range s.Ports {
		s.Ports[i].PublishedPort, s.Ports[i].TargetPort = 8083, 99
	}
	e := ingressPlan().endpoints[0]
	e.ServiceID = "deaf"
	l.change(endpointItem(e), cluster.Item{Kind: cluster.ItemService, ID: "ingress/deaf", Service: &s})
	for _, p := range meshPaths {
		for _, kind := range []string{"tcp", "udp"} {
			if got, err := l.ask("skov-"+p.from, kind, p.to+":8083"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s from %s to %s: %q, %v; want connection refused", kind, p.from, p.to, got, err)
			}
		}
	}
	e.ServiceID = "web"
	l.change(endpointItem(e), cluster.Item{Kind: cluster.ItemService, ID: "ingress/deaf"})
}

// testLocalBridge: a container of host 1 that is not the swarm's, on a bridge
// whose addresses are the same as those of the task's host's gateway bridge.
func testLocalBridge(t *testing.T, l *lab) {
	l.netns("skov-x")
	l.ip("skov-h1", "link add br-test type bridge")
	l.ip("skov-h1", "addr add 172.19.0.1/16 dev br-test")
	l.ip("skov-h1", "link set br-test up")
	l.ip("skov-h1", "link add gx type veth peer name eth0 netns skov-x")
	l.ip("skov-h1", "link set gx master br-test up")
	l.ip("skov-x", "addr add 172.19.0.5/16 dev eth0")
	l.ip("skov-x", "link set eth0 up")
	l.ip("skov-x", "route add default via 172.19.0.1")
	l.ip("skov-c2", "addr add 172.19.0.5/32 dev lo")
	defer l.ip("skov-c2", "addr del 172.19.0.5/32 dev lo")
	for _, kind := range []string{"tcp", "udp", "udpun"} {
		got, err := l.ask("skov-x", kind, "172.19.0.1:8080")
		if want := "m2 10.0.9.1"; got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", kind, got, err, want)
		}
	}
}

func testMeshRefused(t *testing.T, l *lab) {
	for _, from := range []string{"cl1", "h1", "c2"} {
		for _, kind := range []string{"tcp", "udp"} {
			if got, err := l.ask("skov-"+from, kind, "10.99.0.1:8081"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s from %s to a service without tasks: %q, %v; want connection refused", kind, from, got, err)
			}
		}
	}
}

// testOutward: a task's own connections leave by the gateway, as before.
func testOutward(t *testing.T, l *lab) {
	l.serve("skov-cl1", "client", ":9000")
	for _, kind := range []string{"tcp", "udp", "udpun"} {
		got, err := l.ask("skov-c2", kind, "10.99.0.100:9000")
		if want := "client 10.99.0.2"; got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", kind, got, err, want)
		}
	}
}

func testMeshRestart(t *testing.T, l *lab, p *plan) {
	kept := l.talk("skov-cl2", "10.99.0.1:8080")
	defer kept.Close()
	for i := 1; i <= 2; i++ {
		l.hosts[i].restart()
	}
	if got, err := l.ask("skov-cl2", "tcp", "10.99.0.1:8080"); err != nil {
		t.Errorf("before the first Apply: %q, %v", got, err)
	}
	gw := &GatewayInfo{IfName: "eth9", Addr: netip.MustParseAddr("172.18.0.5"), Via: netip.MustParseAddr("172.18.0.1")}
	l.hosts[1].attach("ingress", "o1", "skov-c1", "10.0.9.11", "eth0", gw)
	l.hosts[2].attach("ingress", "m2", "skov-c2", "10.0.9.12", "eth0", gw)
	l.tell(p)
	testPaths(t, l)
	if err := kept.say(); err != nil {
		t.Errorf("a connection from before the restart: %v", err)
	}
}

// testUnderLoad: two tasks take turns in serving, as in a rolling update, and no
// request is lost.
func testUnderLoad(t *testing.T, l *lab, p *plan) {
	e1, e2 := p.endpoints[1], p.endpoints[0]
	e1.ServiceID = "web"
	var load sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	asked, kinds := make([]int, 3), []string{"tcp", "udp", "udpun"}
	for i, kind := range kinds {
		load.Go(func() {
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for ; ctx.Err() == nil; <-pace.C {
				if got, err := l.ask("skov-cl2", kind, "10.99.0.3:8080"); err != nil {
					t.Errorf("%s: %q, %v", kind, got, err)
				}
				asked[i]++
			}
		})
	}
	for i := range 20 {
		e1.Serving, e2.Serving = true, true
		l.change(endpointItem(e1), endpointItem(e2))
		e1.Serving, e2.Serving = i%2 == 0, i%2 == 1
		l.change(endpointItem(e1), endpointItem(e2))
	}
	cancel()
	load.Wait()
	for i, n := range asked {
		if n == 0 {
			t.Errorf("%s: nothing was asked", kinds[i])
		}
	}
	l.tell(p)
}

// testMeshMove: the task gets a second one beside it, then leaves.
func testMeshMove(t *testing.T, l *lab, p *plan) {
	// A UDP flow that is kept, from one socket to one port, moves too.
	kept := l.talkUDP("skov-cl1", "10.99.0.1:8080")
	defer kept.Close()
	open := l.talk("skov-cl1", "10.99.0.3:8080")
	defer open.Close()
	if got := kept.say(); got != "m2 10.99.0.100" {
		t.Errorf("the flow: %q", got)
	}
	e1 := p.endpoints[1]
	e1.ServiceID = "web"
	l.change(endpointItem(e1))
	seen := map[string]int{}
	for range 40 {
		got, err := l.ask("skov-cl2", "tcp", "10.99.0.3:8080")
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	if len(seen) != 2 {
		t.Errorf("back ends used: %v", seen)
	}
	e2 := p.endpoints[0]
	e2.Serving = false
	l.change(endpointItem(e2))
	for range 20 {
		if got, err := l.ask("skov-cl2", "tcp", "10.99.0.3:8080"); got != "m1 192.0.2.10" || err != nil {
			t.Fatalf("after m2 left: %q, %v", got, err)
		}
	}
	if err := open.say(); err != nil {
		t.Errorf("an established connection to m2: %v", err)
	}
	if err := kept.moves("m2"); err != nil {
		t.Errorf("the flow after m2 left: %v", err)
	}
}

// testMeshVanish: an established connection to a task that is no more is reset
// when its client next speaks. The task is now the one on host 1.
func testMeshVanish(t *testing.T, l *lab) {
	var silent net.Listener // accepts and says nothing
	if err := l.in("skov-c1", func() (err error) { silent, err = net.Listen("tcp4", ":81"); return }); err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := ingressPlan().services[1]
	s.ServiceID, s.Ports = "web2", s.Ports[:1]
	s.Ports[0].PublishedPort, s.Ports[0].TargetPort = 8082, 81
	e := ingressPlan().endpoints[0]
	e.TaskID, e.NodeID, e.ServiceID = "o1", "n1", "web2"
	e.Addr, e.DataAddr = netip.MustParseAddr("10.0.9.11"), l.hosts[1].addr
	l.change(endpointItem(e), cluster.Item{Kind: cluster.ItemService, ID: "ingress/web2", Service: &s})
	var conns []net.Conn
	for _, from := range []string{"skov-cl2", "skov-h3"} {
		err := l.in(from, func() error {
			c, err := net.DialTimeout("tcp4", "10.99.0.3:8082", patience)
			if err == nil {
				conns = append(conns, c)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	l.ip("skov-h1", "link set eth0 down") // a power cut
	defer func() {
		l.ip("skov-h1", "link set eth0 up")
		l.ip("skov-h1", "route add default via 10.99.0.254")
	}()
	if err := l.hosts[3].Apply(context.Background(), false, []cluster.Item{{Kind: cluster.ItemEndpoint, ID: "ingress/o1"}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte("still there?"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v; want a reset", c.LocalAddr(), err)
		}
		c.Close()
	}
}

func testConflict(t *testing.T, l *lab, p *plan) {
	var ssh net.Listener
	if err := l.in("skov-h3", func() (err error) { ssh, err = net.Listen("tcp4", "10.99.0.3:2222"); return }); err != nil {
		t.Fatal(err)
	}
	s := p.services[0]
	s.Ports = s.Ports[:1:1]
	s.Ports[0].PublishedPort = 2222
	l.change(cluster.Item{Kind: cluster.ItemService, ID: "ingress/web", Service: &s})
	has := func(want string) {
		t.Helper()
		if s := fmt.Sprint(l.hosts[3].ports.taken); s != want {
			t.Errorf("conflicts: %s, want %s", s, want)
		}
	}
	has(fmt.Sprintf("map[tcp-2222:overlay.test (pid %d)]", os.Getpid()))
	// It is not taken from its owner there; elsewhere it is served.
	go func() {
		if c, err := ssh.Accept(); err == nil {
			fmt.Fprint(c, "ssh")
			c.Close()
		}
	}()
	if got, err := l.ask("skov-cl1", "tcp", "10.99.0.3:2222"); got != "ssh" || err != nil {
		t.Errorf("the owner of the port: %q, %v", got, err)
	}
	// Others see a served port as taken.
	err := l.in("skov-h2", func() error {
		s, err := net.Listen("tcp4", ":2222")
		if err == nil {
			s.Close()
		}
		return err
	})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening on a published port: %v", err)
	}
	ssh.Close()
	if err := l.hosts[3].Repair(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	has("map[]")
}
