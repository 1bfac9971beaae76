package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// A lab is three hosts (skov-h1 to 3, 10.99.0.1 to 3) on a bridge in skov-u,
// a client on that link and one behind a router.
type lab struct {
	t     testing.TB
	hosts [4]*host // 1 to 3
	log   *logBuffer
}

type host struct {
	lab  *lab
	n    int
	ns   string
	addr netip.Addr
	*Overlay
	nextGW int
}

type logBuffer struct{ bytes.Buffer }

func newLab(t testing.TB) *lab {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: network namespaces need root")
	}
	l := &lab{t: t, log: &logBuffer{}}
	clearLab(t)
	t.Cleanup(func() { clearLab(t) })
	l.netns("skov-u")
	l.ip("skov-u", "link add ubr type bridge")
	l.ip("skov-u", "link set ubr up")
	l.ip("skov-u", "addr add 10.99.0.254/24 dev ubr")
	l.write("skov-u", "/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
	l.write("skov-u", "/proc/sys/net/ipv4/ip_forward", "1")
	for i := 1; i <= 3; i++ {
		l.addHost(i)
	}
	l.onLink("skov-cl1", "uc1", "10.99.0.100")
	l.netns("skov-cl2")
	l.ip("skov-u", "link add uc2 type veth peer name eth0 netns skov-cl2")
	l.ip("skov-u", "addr add 192.0.2.1/24 dev uc2")
	l.ip("skov-u", "link set uc2 up")
	l.ip("skov-cl2", "addr add 192.0.2.10/24 dev eth0")
	l.ip("skov-cl2", "link set eth0 up")
	l.ip("skov-cl2", "route add default via 192.0.2.1")
	return l
}

func (l *lab) onLink(ns, end, addr string) {
	l.netns(ns)
	l.ip("skov-u", "link add "+end+" type veth peer name eth0 netns "+ns)
	l.ip("skov-u", "link set "+end+" master ubr up")
	l.ip(ns, "addr add "+addr+"/24 dev eth0")
	l.ip(ns, "link set eth0 up")
}

func (l *lab) addHost(i int) {
	h := &host{lab: l, n: i, ns: fmt.Sprintf("skov-h%d", i), addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i)}), nextGW: 5}
	l.hosts[i] = h
	l.onLink(h.ns, fmt.Sprintf("u%d", i), h.addr.String())
	l.ip(h.ns, "route add default via 10.99.0.254")
	l.ip(h.ns, "link add gwb type bridge")
	l.ip(h.ns, "addr add 172.18.0.1/16 dev gwb")
	l.ip(h.ns, "link set gwb up")
	l.nft(h.ns, "table ip gw {\n chain post {\n type nat hook postrouting priority srcnat\n ip saddr 172.18.0.0/16 oifname eth0 masquerade\n }\n}\n")
	l.write(h.ns, "/proc/sys/net/ipv4/ip_forward", "1")
	h.restart()
}

// restart is a new daemon process on the host.
func (h *host) restart() {
	h.lab.t.Helper()
	if h.Overlay != nil {
		if err := h.Close(); err != nil {
			h.lab.t.Fatal(err)
		}
	}
	o, err := New(Config{
		Log:           slog.New(slog.NewTextHandler(h.lab.log, nil)),
		DataAddr:      func() netip.Addr { return h.addr },
		GatewayBridge: "gwb",
		LocalBridges:  []string{"docker0", "br-*"},
		NetNS:         nsPath(h.ns),
	})
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.Overlay = o
	h.lab.t.Cleanup(func() {
		if h.Overlay == o {
			_ = o.Close()
		}
	})
}

func nsPath(ns string) string { return "/run/netns/" + ns }

func clearLab(t testing.TB) {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "skov-") {
			_ = exec.Command("ip", "netns", "del", name).Run()
		}
	}
}

func (l *lab) netns(name string) {
	l.t.Helper()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		l.t.Fatalf("ip netns add %s: %v: %s", name, err, out)
	}
	l.ip(name, "link set lo up")
}

func (l *lab) ip(ns, args string) string {
	l.t.Helper()
	out, err := exec.Command("ip", append([]string{"-n", ns}, strings.Fields(args)...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("ip -n %s %s: %v: %s", ns, args, err, out)
	}
	return string(out)
}

// links lists a namespace's links by index and name.
func (l *lab) links(ns string) string {
	var b strings.Builder
	for line := range strings.Lines(l.ip(ns, "-o link show")) {
		f := strings.Fields(line)
		fmt.Fprintln(&b, f[0], f[1])
	}
	return b.String()
}

func (l *lab) nft(ns, rules string) string {
	l.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out []byte
	err := l.in(ns, func() (err error) { out, err = cmd.CombinedOutput(); return })
	if err != nil {
		l.t.Fatalf("nft in %s: %v: %s", ns, err, out)
	}
	return string(out)
}

func (l *lab) write(ns, path, value string) {
	l.t.Helper()
	if err := l.in(ns, func() error { return os.WriteFile(path, []byte(value), 0o644) }); err != nil {
		l.t.Fatal(err)
	}
}

// in runs fn in a namespace.
func (l *lab) in(ns string, fn func() error) error {
	h, err := netns.GetFromPath(nsPath(ns))
	if err != nil {
		return err
	}
	defer h.Close()
	return namespace.Do(h, fn)
}

// container makes a namespace with an interface on the host's gateway bridge.
func (h *host) container(name string) (ns string, gw *GatewayInfo) {
	h.lab.t.Helper()
	ns = "skov-" + name
	h.lab.netns(ns)
	own := netip.AddrFrom4([4]byte{172, 18, 0, byte(h.nextGW)})
	h.nextGW++
	h.lab.ip(h.ns, "link add g"+name+" type veth peer name eth9 netns "+ns)
	h.lab.ip(h.ns, "link set g"+name+" master gwb up")
	h.lab.ip(ns, "addr add "+own.String()+"/16 dev eth9")
	h.lab.ip(ns, "link set eth9 up")
	return ns, &GatewayInfo{IfName: "eth9", Addr: own, Via: netip.MustParseAddr("172.18.0.1")}
}

func (h *host) attach(network, name, ns, addr, ifName string, gw *GatewayInfo) {
	h.lab.t.Helper()
	err := h.Attach(context.Background(), AttachRequest{
		NetworkID: network, ID: name, Addr: netip.MustParseAddr(addr), NetNS: nsPath(ns), IfName: ifName, Gateway: gw,
	})
	if err != nil {
		h.lab.t.Fatalf("attach %s: %v", name, err)
	}
}

// serve answers on TCP and UDP with "id address-of-the-client".
func (l *lab) serve(ns, id, addr string) {
	l.t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	err := l.in(ns, func() (err error) {
		if tcp, err = net.Listen("tcp4", addr); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp4", addr)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			_, p, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(id+" "+hostOf(p)), p)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, id+" "+hostOf(c.RemoteAddr()))
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				b := make([]byte, 4)
				if n, _ := io.ReadFull(c, b); string(b[:n]) == "talk" {
					_ = c.SetReadDeadline(time.Time{})
					_, _ = io.Copy(c, c)
				}
			}()
		}
	}()
}

func hostOf(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

const patience = 5 * time.Second

// ask makes one exchange from a namespace: tcp, udp (connected) or udpun
// (unconnected, from a wildcard socket).
func (l *lab) ask(ns, kind, addr string) (answer string, err error) {
	err2 := l.in(ns, func() error {
		answer, err = exchange(kind, addr)
		return nil
	})
	return answer, errors.Join(err2, err)
}

func exchange(kind, addr string) (string, error) {
	if kind == "udpun" {
		return exchangeUnconnected(addr)
	}
	c, err := net.DialTimeout(kind+"4", addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if kind == "tcp" {
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// talk is a connection that stays.
type talk struct{ net.Conn }

func (l *lab) talk(ns, addr string) *talk {
	l.t.Helper()
	var c net.Conn
	err := l.in(ns, func() (err error) { c, err = net.DialTimeout("tcp4", addr, patience); return })
	if err != nil {
		l.t.Fatal(err)
	}
	_, _ = c.Write([]byte("talk"))
	k := &talk{c}
	if _, err := k.line(); err != nil {
		l.t.Fatal(err)
	}
	return k
}

// say expects what it says to come back.
func (k *talk) say() error {
	if _, err := k.Write([]byte("hello")); err != nil {
		return err
	}
	got, err := k.line()
	if err == nil && got != "hello" {
		return fmt.Errorf("answer %q", got)
	}
	return err
}

func (k *talk) line() (string, error) {
	b := make([]byte, 100)
	_ = k.SetReadDeadline(time.Now().Add(patience))
	n, err := k.Read(b)
	return string(b[:n]), err
}

// udpTalk is a UDP socket that stays.
type udpTalk struct{ net.Conn }

func (l *lab) talkUDP(ns, addr string) *udpTalk {
	l.t.Helper()
	var c net.Conn
	if err := l.in(ns, func() (err error) { c, err = net.Dial("udp4", addr); return }); err != nil {
		l.t.Fatal(err)
	}
	f := &udpTalk{c}
	f.say()
	return f
}

// say returns who answers, or the error.
func (f *udpTalk) say() string {
	_ = f.SetDeadline(time.Now().Add(patience))
	if _, err := f.Write([]byte("x")); err != nil {
		return err.Error()
	}
	b := make([]byte, 100)
	n, err := f.Read(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// moves waits until another back end than the one named answers. That is to be
// soon, and at most the question that is under way in that moment, which here
// there always is, may get lost.
func (f *udpTalk) moves(from string) error {
	lost := 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		got := f.say()
		if !strings.HasPrefix(got, "t") && !strings.HasPrefix(got, "m") {
			if lost++; lost > 1 {
				return errors.New(got)
			}
			continue
		}
		if !strings.HasPrefix(got, from+" ") {
			return nil
		}
	}
	return fmt.Errorf("%s goes on to answer", from)
}

func exchangeUnconnected(addr string) (string, error) {
	u, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		return "", err
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(patience))
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return "", err
	}
	if _, err := u.WriteTo([]byte("x"), to); err != nil {
		return "", err
	}
	b := make([]byte, 2048)
	n, from, err := u.ReadFrom(b)
	if err == nil && from.String() != addr {
		return "", fmt.Errorf("answer comes from %s, not %s", from, addr)
	}
	return string(b[:n]), err
}

func (l *lab) ping(ns, addr string, args ...string) error {
	cmd := exec.Command("ping", append([]string{"-c1", "-W2", addr}, args...)...)
	if _, err := exec.LookPath("ping"); err != nil {
		cmd = exec.Command("busybox", append([]string{"ping", "-c1", "-W2", addr}, args...)...)
	}
	var out []byte
	err := l.in(ns, func() (err error) { out, err = cmd.CombinedOutput(); return })
	if err != nil {
		return fmt.Errorf("ping %s %v: %w: %s", addr, args, err, out)
	}
	return nil
}

// A plan is a network as the manager has it; the items of each node follow.
type plan struct {
	net       cluster.WantedNetwork
	nodeAddrs [4]string // ingress: each node's own address
	endpoints []cluster.Endpoint
	services  []cluster.VirtualService
}

func (p *plan) endpoint(task string, node int, addr, service string, names ...string) *plan {
	p.endpoints = append(p.endpoints, cluster.Endpoint{
		NetworkID: p.net.ID, TaskID: task, NodeID: fmt.Sprint("n", node), DataAddr: netip.AddrFrom4([4]byte{10, 99, 0, byte(node)}),
		Addr: netip.MustParseAddr(addr), ServiceID: service, Serving: true, Names: names,
	})
	return p
}

// items are what node n is told.
func (p *plan) items(n int) []cluster.Item {
	w := p.net
	if w.Ingress {
		w.NodeAddr = netip.MustParseAddr(p.nodeAddrs[n])
	}
	out := []cluster.Item{{Kind: cluster.ItemNetwork, ID: w.ID, Network: &w}}
	for i := 1; i <= 3; i++ {
		if i == n {
			continue
		}
		peer := &cluster.Peer{NetworkID: w.ID, NodeID: fmt.Sprint("n", i), DataAddr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i)})}
		if w.Ingress {
			peer.NodeAddr = netip.MustParseAddr(p.nodeAddrs[i])
		}
		out = append(out, cluster.Item{Kind: cluster.ItemPeer, ID: w.ID + "/" + peer.NodeID, Peer: peer})
	}
	for _, e := range p.endpoints {
		out = append(out, endpointItem(e))
	}
	for _, s := range p.services {
		out = append(out, cluster.Item{Kind: cluster.ItemService, ID: w.ID + "/" + s.ServiceID, Service: &s})
	}
	return out
}

func endpointItem(e cluster.Endpoint) cluster.Item {
	return cluster.Item{Kind: cluster.ItemEndpoint, ID: e.NetworkID + "/" + e.TaskID, Endpoint: &e}
}

// tell sends each host the complete set of the plans.
func (l *lab) tell(plans ...*plan) {
	l.t.Helper()
	for i := 1; i <= 3; i++ {
		var items []cluster.Item
		for _, p := range plans {
			items = append(items, p.items(i)...)
		}
		if err := l.hosts[i].Apply(context.Background(), true, items); err != nil {
			l.t.Fatalf("host %d: %v", i, err)
		}
	}
}

// change sends each host some items.
func (l *lab) change(items ...cluster.Item) {
	l.t.Helper()
	for i := 1; i <= 3; i++ {
		if err := l.hosts[i].Apply(context.Background(), false, items); err != nil {
			l.t.Fatalf("host %d: %v", i, err)
		}
	}
}
