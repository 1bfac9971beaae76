package network

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/skep-dev/skep/internal/cluster"
)

// fakeSwarm gives out places in net1 and tells the host of the network only
// after it was asked for one, as a real one does.
type fakeSwarm struct {
	host *testHost
	mu   sync.Mutex
	held map[string]netip.Addr
	next string // address to give
	away bool
}

func (f *fakeSwarm) Attach(ctx context.Context, network, containerID string, wanted netip.Addr, names []string) (Place, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch network {
	case "closed":
		return Place{}, cluster.Deniedf("network closed not manually attachable")
	case "net1", "netid":
	default:
		return Place{}, cluster.NotFoundf("network %s not found", network)
	}
	if !wanted.IsValid() {
		wanted = netip.MustParseAddr(f.next)
	}
	id := "task" + containerID[:6]
	f.held[id] = wanted
	go f.host.Apply(context.WithoutCancel(ctx), true, swarmItems(f.host.addr, []netip.Addr{f.host.addr}))
	return Place{TaskID: id, NetworkID: "netid", Addr: wanted}, nil
}

func (f *fakeSwarm) Detach(ctx context.Context, taskID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return cluster.Unavailablef("no manager answers")
	}
	delete(f.held, taskID)
	return nil
}

// give sets the address that is given next.
func (f *fakeSwarm) give(addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = addr
}

func (f *fakeSwarm) holds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

func TestAttachable(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	fake := &fakeSwarm{held: map[string]netip.Addr{}, host: h, next: "10.0.1.77"}
	h.stop()
	h.swarm = fake
	h.start()
	for ref, want := range map[string]string{
		"closed": "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not manually attachable",
		"nosuch": "network nosuch not found",
	} {
		if _, err := h.Join(ctx, h.request("c", nil, ref)); err == nil || err.Error() != want {
			t.Errorf("%s: %v", ref, err)
		}
	}
	sb := h.join("plain", nil, "net1")
	if got := sb.Endpoints[0]; got.NetworkID != "netid" || got.Addr.String() != "10.0.1.77/24" {
		t.Errorf("endpoint: %+v", got)
	}
	knows(t, sb.NetNS, "web", "10.0.1.100")
	wish := h.request("wish", nil, "net1")
	wish.Plain, wish.Endpoints[0].Addr = true, netip.MustParseAddr("10.0.1.88")
	wished, err := h.Join(ctx, wish)
	must(t, err)
	defer h.Leave(ctx, wish.ContainerID)
	if got := wished.Endpoints[0].Addr.String(); got != "10.0.1.88/24" {
		t.Errorf("address %s", got)
	}
	// A container with a way out keeps it when it joins a swarm network, and gets
	// one by the gateway network when it loses its own.
	both := h.join("both", map[string]string{"80/tcp": "8085"}, "bridge")
	echo(t, both.NetNS, "tcp", 80)
	echo(t, h.outside, "tcp", 80)
	fake.give("10.0.1.99")
	_, err = h.Connect(ctx, containerID("both"), EndpointRequest{Network: "net1"})
	must(t, err)
	knows(t, both.NetNS, "web", "10.0.1.100")
	gateway := func() int {
		n, err := h.Inspect(ctx, gatewayNetwork)
		must(t, err)
		return len(n.Containers)
	}
	if gateway() != 2 { // plain and wish
		t.Errorf("%d containers in the gateway network", gateway())
	}
	reaches(t, "published, connected", h.outside, "tcp", hostAddr+":8085", outsideAddr)
	must(t, h.Disconnect(ctx, containerID("both"), "bridge", false))
	if gateway() != 3 {
		t.Errorf("%d containers in the gateway network", gateway())
	}
	reaches(t, "published by the gateway network", h.outside, "tcp", hostAddr+":8085", outsideAddr)
	reaches(t, "outside by the gateway network", both.NetNS, "tcp", outsideAddr+":80", hostAddr)
	must(t, h.Disconnect(ctx, containerID("both"), "net1", false))
	if gateway() != 2 || fake.holds() != 2 {
		t.Errorf("%d containers in the gateway network, places held: %v", gateway(), fake.held)
	}
	// A Join that fails keeps no place.
	if _, err := h.Join(ctx, h.request("fails", map[string]string{"80/tcp": "bogus"}, "net1")); err == nil || !strings.Contains(err.Error(), "bogus") {
		t.Errorf("a bogus port: %v", err)
	}
	if fake.holds() != 2 {
		t.Errorf("places held: %v", fake.held)
	}
	must(t, h.Leave(ctx, wish.ContainerID))
	if fake.holds() != 1 {
		t.Errorf("places held: %v", fake.held)
	}
	// What cannot be given back now is given back later, also by the next daemon.
	fake.away = true
	must(t, h.Leave(ctx, containerID("plain")))
	h.stop()
	fake.away = false
	h.start()
	eventually(t, "the place is given back", func() bool { return fake.holds() == 0 })
	eventually(t, "nothing is on record", func() bool {
		files, err := os.ReadDir(h.dir + "/state/places")
		return err == nil && len(files) == 0
	})
}
