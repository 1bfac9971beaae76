package network

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
	"github.com/skep-dev/skep/internal/network/nft"
)

// linkNames are the interfaces of the host.
func (h *testHost) linkNames() []string {
	h.t.Helper()
	var out []string
	must(h.t, namespace.DoAt(h.ns, func(netns.NsHandle) error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		links, err := nl.LinkList()
		for _, l := range links {
			out = append(out, l.Attrs().Name)
		}
		return err
	}))
	return out
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestRestart(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	h.network(network.CreateRequest{Name: "front"})
	kept := h.join("kept", map[string]string{"80/tcp": "8080", "80/udp": "8080"}, "front")
	h.join("ended", map[string]string{"81/tcp": "8081"}, "front")
	echo(t, kept.NetNS, "tcp", 80)
	echo(t, kept.NetNS, "udp", 80)
	before, err := h.Inspect(ctx, "front")
	must(t, err)
	h.stop()
	reaches(t, "with the daemon away", h.outside, "tcp", hostAddr+":8080", outsideAddr)
	// What a daemon leaves that dies in the middle of a Join.
	_, err = namespace.Make(h.dir + "/run/netns")
	must(t, err)
	must(t, namespace.DoAt(h.ns, func(netns.NsHandle) error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		br, err := nl.LinkByName("skep0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "vethleft", br.Attrs().Index
		v := netlink.NewVeth(attrs)
		v.PeerName = "vethleftpeer"
		return nl.LinkAdd(v)
	}))

	h.start()
	must(t, h.Adopt(ctx, []string{containerID("kept")}))
	after, err := h.Inspect(ctx, "front")
	must(t, err)
	delete(before.Containers, containerID("ended"))
	if diff := cmp.Diff(before.Containers, after.Containers, cmp.Comparer(func(a, b network.EndpointResource) bool {
		return a.EndpointID == b.EndpointID && a.IPv4Address == b.IPv4Address && a.Name == b.Name
	})); diff != "" || len(after.Containers) != 1 {
		t.Errorf("containers: (-before +after)\n%s", diff)
	}
	for _, proto := range []string{"tcp", "udp"} {
		reaches(t, "after the restart", h.outside, proto, hostAddr+":8080", outsideAddr)
	}
	blocked(t, "port of one that ended", h.outside, "tcp", hostAddr+":8081")
	knows(t, kept.NetNS, "kept", kept.Endpoints[0].Addr.Addr().String())
	again, err := h.Join(ctx, h.request("kept", nil, "front"))
	must(t, err)
	if diff := cmp.Diff(kept.NetNS, again.NetNS); diff != "" {
		t.Errorf("joined anew: %s", diff)
	}
	taken := h.request("taker", map[string]string{"80/tcp": "8080"}, "front")
	if _, err := h.Join(ctx, taken); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("port of an adopted container: %v", err)
	}
	if names := h.linkNames(); strings.Contains(strings.Join(names, " "), "vethleft") {
		t.Errorf("left over: %v", names)
	}
}

func TestNothingIsLeft(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	before := h.linkNames()
	h.network(network.CreateRequest{Name: "front"})
	h.join("a", map[string]string{"80/tcp": "8080"}, "front", "bridge")
	bad := h.request("b", map[string]string{"80/tcp": "8080"}, "front")
	if _, err := h.Join(ctx, bad); err == nil {
		t.Fatal("one port published twice")
	}
	must(t, h.Leave(ctx, containerID("a")))
	must(t, h.Leave(ctx, containerID("a")))
	must(t, h.Remove(ctx, "front"))
	if diff := cmp.Diff(before, h.linkNames()); diff != "" {
		t.Errorf("interfaces: (-before +after)\n%s", diff)
	}
	h.stop()
	for _, dir := range []string{"run/netns", "run/sandboxes"} {
		files, err := os.ReadDir(h.dir + "/" + dir)
		must(t, err)
		if len(files) > 0 {
			t.Errorf("%s: %v", dir, files)
		}
	}
}

func TestRulesComeBack(t *testing.T) {
	h := newTestHost(t)
	web := h.join("web", map[string]string{"80/tcp": "8080"}, "bridge")
	echo(t, web.NetNS, "tcp", 80)
	reaches(t, "outside", h.outside, "tcp", hostAddr+":8080", outsideAddr)
	must(t, namespace.DoAt(h.ns, func(ns netns.NsHandle) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	}))
	eventually(t, "rules are back", func() bool {
		_, err := call(h.outside, "tcp", hostAddr+":8080", brief)
		return err == nil
	})
	// The operator's chain is there, and what it drops is dropped.
	must(t, namespace.DoAt(h.ns, func(ns netns.NsHandle) error {
		c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		tab := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableUser}
		c.AddRule(&nftables.Rule{Table: tab, Chain: &nftables.Chain{Name: "forward", Table: tab},
			Exprs: nft.Rule(nft.Iif("up0"), nft.Drop())})
		return c.Flush()
	}))
	blocked(t, "dropped by the operator", h.outside, "tcp", hostAddr+":8080")
	must(t, h.fw.restore())
	blocked(t, "dropped by the operator, after ours were built anew", h.outside, "tcp", hostAddr+":8080")
}

func TestPortConflicts(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	h.join("first", map[string]string{"80/tcp": "8080"}, "bridge")
	must(t, namespace.DoAt(h.ns, func(netns.NsHandle) error {
		l, err := net.Listen("tcp4", "0.0.0.0:8090")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	for at, want := range map[string]string{
		"8080":           "Bind for 0.0.0.0:8080 failed: port is already allocated",
		"127.0.0.1:8080": "Bind for 127.0.0.1:8080 failed: port is already allocated",
		"8090":           "failed to bind host port for 0.0.0.0:8090: address already in use",
	} {
		_, err := h.Join(ctx, h.request("second", map[string]string{"80/tcp": at}, "bridge"))
		if err == nil || !strings.HasPrefix(err.Error(), "driver failed programming external connectivity on endpoint second (") || !strings.HasSuffix(err.Error(), "): "+want) {
			t.Errorf("%s: %v, want %s", at, err, want)
		}
	}
	// The same number of the other transport, a range with a free port, and any port.
	sb := h.join("third", map[string]string{"80/udp": "8080", "80/tcp": "8080-8081", "81/tcp": ""}, "bridge")
	for port, want := range map[string]string{"80/udp": "8080", "80/tcp": "8081", "81/tcp": "49153"} {
		if got := sb.Ports[network.MustParsePort(port)]; len(got) != 1 || got[0].HostPort != want {
			t.Errorf("%s is published as %v, want %s", port, got, want)
		}
	}
	// Given back at once.
	must(t, h.Leave(ctx, containerID("first")))
	h.join("fourth", map[string]string{"80/tcp": "8080"}, "bridge")
}
