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
		wanted = netip.MustParseAddr("10.0.1.77")
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

func (f *fakeSwarm) holds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

func TestAttachable(t *testing.T) {
	h := newTestHost(t)
	ctx := context.Background()
	fake := &fakeSwarm{held: map[string]netip.Addr{}, host: h}
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
	if got := wished.Endpoints[0].Addr.String(); got != "10.0.1.88/24" {
		t.Errorf("address %s", got)
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
