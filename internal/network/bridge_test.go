package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/network/namespace"
)

func (h *testHost) network(req network.CreateRequest) string {
	h.t.Helper()
	resp, err := h.Create(context.Background(), req)
	must(h.t, err)
	h.t.Cleanup(func() {
		if err := h.Remove(context.Background(), resp.ID); err != nil && !errdefs.IsNotFound(err) {
			h.t.Error(err)
		}
	})
	return resp.ID
}

func at(sb *Sandbox, i, port int) string {
	return fmt.Sprintf("%s:%d", sb.Endpoints[i].Addr.Addr(), port)
}

func TestBridge(t *testing.T) {
	h := newTestHost(t)
	h.network(network.CreateRequest{Name: "front"})
	h.network(network.CreateRequest{Name: "closed", Internal: true})
	h.network(network.CreateRequest{Name: "apart", Options: map[string]string{optICC: "false"}})
	a, b := h.join("a", nil, "bridge"), h.join("b", nil, "bridge")
	c, d := h.join("c", nil, "front"), h.join("d", nil, "closed")
	d2 := h.join("d2", nil, "closed")
	e, f := h.join("e", nil, "apart"), h.join("f", nil, "apart")
	if got := a.Endpoints[0].Addr.String(); got != "172.17.0.2/16" {
		t.Errorf("first container has %s", got)
	}
	for _, sb := range []*Sandbox{a, b, c, d, d2, e, f} {
		echo(t, sb.NetNS, "tcp", 80)
		echo(t, sb.NetNS, "udp", 80)
	}
	for _, proto := range []string{"tcp", "udp"} {
		echo(t, h.outside, proto, 80)
		reaches(t, "neighbour", a.NetNS, proto, at(b, 0, 80), a.Endpoints[0].Addr.Addr().String())
		reaches(t, "neighbour in an internal network", d.NetNS, proto, at(d2, 0, 80), d.Endpoints[0].Addr.Addr().String())
		reaches(t, "outside", a.NetNS, proto, outsideAddr+":80", hostAddr)
		reaches(t, "outside from a network of the user's", c.NetNS, proto, outsideAddr+":80", hostAddr)
		reaches(t, "outside without neighbours", e.NetNS, proto, outsideAddr+":80", hostAddr)
		reaches(t, "host to container", h.ns, proto, at(a, 0, 80), "172.17.0.1")
		blocked(t, "another bridge", a.NetNS, proto, at(c, 0, 80))
		blocked(t, "an internal bridge", a.NetNS, proto, at(d, 0, 80))
		blocked(t, "outside from an internal network", d.NetNS, proto, outsideAddr+":80")
		blocked(t, "neighbour with icc off", e.NetNS, proto, at(f, 0, 80))
		blocked(t, "unpublished port from outside", h.outside, proto, at(a, 0, 80))
	}
}

func TestPublishedPorts(t *testing.T) {
	h := newTestHost(t)
	h.network(network.CreateRequest{Name: "front"})
	for _, proto := range []string{"tcp", "udp"} {
		web := h.join("web"+proto, map[string]string{"80/" + proto: "8080"}, "bridge")
		local := h.join("local"+proto, map[string]string{"80/" + proto: "127.0.0.1:8081"}, "bridge")
		other := h.join("other"+proto, nil, "front")
		for _, sb := range []*Sandbox{web, local} {
			echo(t, sb.NetNS, proto, 80)
		}
		reaches(t, "outside", h.outside, proto, hostAddr+":8080", outsideAddr)
		reaches(t, "127.0.0.1", h.ns, proto, "127.0.0.1:8080", "172.17.0.1")
		reaches(t, "the host's address from the host", h.ns, proto, hostAddr+":8080", "")
		reaches(t, "the gateway's address from the host", h.ns, proto, "172.17.0.1:8080", "")
		reaches(t, "neighbour", local.NetNS, proto, hostAddr+":8080", "")
		reaches(t, "the container itself", web.NetNS, proto, hostAddr+":8080", "")
		reaches(t, "the container itself by its gateway", web.NetNS, proto, "172.17.0.1:8080", "")
		reaches(t, "another bridge", other.NetNS, proto, hostAddr+":8080", "")
		reaches(t, "127.0.0.1 alone", h.ns, proto, "127.0.0.1:8081", "172.17.0.1")
		blocked(t, "127.0.0.1 alone", h.outside, proto, hostAddr+":8081")
		still := keepTalking(t, h.outside, proto, hostAddr+":8080")
		must(t, h.Leave(context.Background(), containerID("web"+proto)))
		still()
		blocked(t, "after the end", h.outside, proto, hostAddr+":8080")
		again := h.join("again"+proto, map[string]string{"81/" + proto: "8080"}, "bridge")
		echo(t, again.NetNS, proto, 81)
		reaches(t, "another container later", h.outside, proto, hostAddr+":8080", outsideAddr)
	}
}

// keepTalking opens a connection and returns what sends on it once more and
// wants to be told that nobody is there any more.
func keepTalking(t *testing.T, ns, proto, to string) func() {
	t.Helper()
	var c net.Conn
	must(t, namespace.DoAt(ns, func(netns.NsHandle) (err error) {
		c, err = net.Dial(proto+"4", to)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	say := func() error {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 100))
		return err
	}
	must(t, say())
	return func() {
		t.Helper()
		var err error
		for range 3 { // answers still on their way may come first
			if err = say(); errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
				return
			}
		}
		t.Errorf("%s %s: %v, want to be told that nobody listens", proto, to, err)
	}
}
