package network

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/network/namespace"
)

func subnet(s string) *network.IPAM {
	return &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix(s)}}}
}

// The errors that users meet have Docker's words.
func TestNetworkErrors(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	id := h.network(network.CreateRequest{Name: "front", IPAM: subnet("10.7.0.0/24"), Labels: map[string]string{"a": "b"}})
	h.join("web", nil, "front")
	create := func(req network.CreateRequest) error { _, err := h.Create(ctx, req); return err }
	for _, c := range []struct {
		err  error
		want string
	}{
		{create(network.CreateRequest{Name: "front"}), "network with name front already exists"},
		{create(network.CreateRequest{Name: "host"}), "operation is not permitted on predefined host network "},
		{create(network.CreateRequest{Name: "x", IPAM: subnet("10.7.0.0/16")}), "Pool overlaps with other one on this address space"},
		{create(network.CreateRequest{Name: "x", Driver: "nosuch"}), "could not find plugin nosuch in v1 plugin registry: plugin not found"},
		{create(network.CreateRequest{Name: "x", Options: map[string]string{optName: "skep0"}}), "networks have same bridge name"},
		{create(network.CreateRequest{Name: "x", Options: map[string]string{optName: "up0"}}), "interface up0 is there already and is no bridge"},
		{h.Remove(ctx, "nosuch"), "network nosuch not found"},
		{h.Remove(ctx, "bridge"), "bridge is a pre-defined network and cannot be removed"},
		{h.Remove(ctx, "front"), "error while removing network: network front id " + id + " has active endpoints"},
	} {
		if c.err == nil || !strings.HasSuffix(c.err.Error(), c.want) {
			t.Errorf("got %v, want %s", c.err, c.want)
		}
	}
	for _, ref := range []string{"front", id, id[:12], id[:3]} {
		n, err := h.Inspect(ctx, ref)
		if err != nil || n.ID != id || n.IPAM.Config[0].Gateway.String() != "10.7.0.1" || n.Labels["a"] != "b" || n.Scope != "local" || n.Driver != "bridge" {
			t.Errorf("%s: %+v, %v", ref, n, err)
		}
	}
	if c, err := h.Inspect(ctx, "front"); err != nil || c.Containers[containerID("web")].IPv4Address.String() != "10.7.0.2/24" {
		t.Errorf("containers: %+v, %v", c.Containers, err)
	}
	all, err := h.List(ctx)
	must(t, err)
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "bridge front host none" {
		t.Errorf("networks: %s", got)
	}
}

// A daemon that starts with another bridge moves to it, and leaves alone one
// that an operator made.
func TestDefaultBridgeChanges(t *testing.T) {
	h := newTestHost(t)
	defaultBridge := func() network.Inspect {
		n, err := h.Inspect(context.Background(), "bridge")
		must(t, err)
		return n
	}
	first := defaultBridge()
	h.stop()
	must(t, namespace.DoAt(h.ns, func(ns netns.NsHandle) error {
		l, err := newLinks(ns)
		if err != nil {
			return err
		}
		_, err = l.bridge(&netRecord{Link: "mine", MTU: 1500, Gateway: netip.MustParseAddr("10.8.0.9"), Subnet: netip.MustParsePrefix("10.8.0.0/24")})
		return err
	}))
	h.bridge = "mine"
	h.start()
	second := defaultBridge()
	if second.ID != first.ID || second.IPAM.Config[0].Gateway.String() != "10.8.0.9" || second.Options[optName] != "mine" {
		t.Errorf("%+v", second)
	}
	if got := h.join("web", nil, "bridge").Endpoints[0].Addr.String(); got != "10.8.0.1/24" {
		t.Errorf("a container has %s", got)
	}
	if got := strings.Join(h.linkNames(), " "); strings.Contains(got, "skep0") {
		t.Errorf("interfaces: %s", got)
	}
	must(t, h.Leave(context.Background(), containerID("web")))
	h.stop()
	h.bridge = "none"
	h.start()
	if _, err := h.Inspect(context.Background(), "bridge"); err == nil || err.Error() != "network bridge not found" {
		t.Errorf("no bridge: %v", err)
	}
	if got := strings.Join(h.linkNames(), " "); got != "lo up0 mine" {
		t.Errorf("interfaces: %s", got)
	}
}
