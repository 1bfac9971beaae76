package network

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// testHost is a network namespace that stands in for a host, with a second one
// next to it that stands in for the rest of the world.
type testHost struct {
	*Manager
	t       *testing.T
	dir     string
	addr    netip.Addr
	ns      string // of the host
	outside string
	bridge  string // Config.Bridge
	swarm   Swarm
	untold  bool // of its own address for overlay traffic
	stop    func()
}

const (
	hostAddr    = "10.99.0.1"
	outsideAddr = "10.99.0.2"
)

// newWorld makes the world outside, with a bridge that hosts are plugged into.
func newWorld(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NEEDS ROOT: network namespaces cannot be made without it")
	}
	world := testNS(t, t.TempDir())
	must(t, namespace.DoAt(world, func(ns netns.NsHandle) error {
		l, err := newLinks(ns)
		if err != nil {
			return err
		}
		_, err = l.bridge(&netRecord{Link: "world", MTU: 1500,
			Gateway: netip.MustParseAddr(outsideAddr), Subnet: netip.MustParsePrefix("10.99.0.0/24")})
		return err
	}))
	return world
}

func newTestHost(t *testing.T) *testHost {
	t.Helper()
	return newHostIn(t, newWorld(t), hostAddr)
}

// newHostIn makes a host with an address in a world and starts its daemon.
func newHostIn(t *testing.T, world, addr string) *testHost {
	t.Helper()
	dir := t.TempDir()
	h := &testHost{t: t, dir: dir, addr: netip.MustParseAddr(addr), ns: testNS(t, dir), outside: world}
	must(t, namespace.DoAt(world, func(ns netns.NsHandle) error {
		l, err := newLinks(ns)
		if err != nil {
			return err
		}
		return namespace.DoAt(h.ns, func(inner netns.NsHandle) error {
			return l.plug(&netRecord{Link: "world", MTU: 1500, ICC: true}, &endpoint{IfName: "up0", HostLink: "h" + h.addr.String()[len("10.99.0."):],
				Endpoint: Endpoint{MAC: fmt.Sprintf("02:99:00:00:00:%02x", h.addr.As4()[3]), Addr: netip.PrefixFrom(h.addr, 24),
					Gateway: netip.MustParseAddr(outsideAddr)}}, inner, true)
		})
	}))
	must(t, os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+outsideAddr+"\nsearch example.org\n"), 0o644))
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// start starts a daemon on the host; its stop leaves everything else as it is.
func (h *testHost) start() {
	h.t.Helper()
	must(h.t, namespace.DoAt(h.ns, func(netns.NsHandle) (err error) {
		h.Manager, err = New(Config{Dir: h.dir + "/state", ExecDir: h.dir + "/run", ResolvConf: h.dir + "/resolv.conf",
			Bridge: h.bridge, Swarm: h.swarm, Prepared: 1, DataAddr: h.vtep, Log: slog.New(slog.NewTextHandler(testWriter{h.t}, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	m := h.Manager
	go func() { ended <- m.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("Run: %v", err)
		}
		h.stop = func() {}
	}
}

func (h *testHost) vtep() netip.Addr {
	if h.untold {
		return netip.Addr{}
	}
	return h.addr
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func testNS(t *testing.T, dir string) string {
	t.Helper()
	path, err := namespace.Make(dir)
	must(t, err)
	t.Cleanup(func() {
		if err := namespace.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// join makes a container's sandbox, which Cleanup removes.
func (h *testHost) join(name string, ports map[string]string, nets ...string) *Sandbox {
	h.t.Helper()
	req := h.request(name, ports, nets...)
	sb, err := h.Join(context.Background(), req)
	must(h.t, err)
	h.t.Cleanup(func() { must(h.t, h.Leave(context.Background(), req.ContainerID)) })
	return sb
}

// containerID is an id for a name: no two have a prefix in common.
func containerID(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

func (h *testHost) request(name string, ports map[string]string, nets ...string) SandboxRequest {
	req := SandboxRequest{ContainerID: containerID(name), ContainerName: name, Hostname: "h-" + name, Dir: h.t.TempDir(), Ports: portsOf(h.t, ports)}
	for _, n := range nets {
		req.Endpoints = append(req.Endpoints, EndpointRequest{Network: n})
	}
	return req
}

// portsOf reads container ports and where they are published: "80/tcp" to "8080"
// or "127.0.0.1:8080".
func portsOf(t *testing.T, ports map[string]string) network.PortMap {
	t.Helper()
	out := network.PortMap{}
	for c, at := range ports {
		var b network.PortBinding
		b.HostPort = at
		if i := strings.LastIndexByte(at, ':'); i >= 0 {
			b.HostIP, b.HostPort = netip.MustParseAddr(at[:i]), at[i+1:]
		}
		p := network.MustParsePort(c)
		out[p] = append(out[p], b)
	}
	return out
}

// echo answers in a namespace with the address it sees the client under.
func echo(t *testing.T, ns, proto string, port int) {
	t.Helper()
	at := fmt.Sprintf("0.0.0.0:%d", port)
	must(t, namespace.DoAt(ns, func(netns.NsHandle) error {
		if proto == "udp" {
			pc, err := net.ListenPacket("udp4", at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { pc.Close() })
			go func() {
				buf := make([]byte, 100)
				for {
					_, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					pc.WriteTo([]byte(from.String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp4", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for buf := make([]byte, 1); ; {
						if _, err := io.WriteString(c, c.RemoteAddr().String()); err != nil {
							return
						}
						if _, err := c.Read(buf); err != nil {
							return
						}
					}
				}()
			}
		}()
		return nil
	}))
}

// patience is how long a call waits that is to get through, and brief one that is
// to be blocked.
const (
	patience = 10 * time.Second
	brief    = 500 * time.Millisecond
)

// call asks an echo from a namespace and returns the address it saw.
func call(ns, proto, to string, wait time.Duration) (netip.Addr, error) {
	var seen netip.Addr
	err := namespace.DoAt(ns, func(netns.NsHandle) error {
		c, err := net.DialTimeout(proto+"4", to, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if proto == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		at, err := netip.ParseAddrPort(string(buf[:n]))
		seen = at.Addr()
		return err
	})
	return seen, err
}

// reaches fails the test unless a call gets through and, if from is not empty,
// comes from that address.
func reaches(t *testing.T, what, ns, proto, to, from string) {
	t.Helper()
	seen, err := call(ns, proto, to, patience)
	if err != nil {
		t.Errorf("%s (%s %s): %v", what, proto, to, err)
	} else if from != "" && seen.String() != from {
		t.Errorf("%s (%s %s): came from %s, want %s", what, proto, to, seen, from)
	}
}

func blocked(t *testing.T, what, ns, proto, to string) {
	t.Helper()
	if seen, err := call(ns, proto, to, brief); err == nil {
		t.Errorf("%s (%s %s): got through, as %s", what, proto, to, seen)
	}
}
