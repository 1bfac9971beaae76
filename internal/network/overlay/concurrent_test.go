package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/skep-dev/skep/internal/cluster"
)

// TestConcurrent: containers come and go while the swarm changes; each that
// stays ends up with the rules of the last word.
func TestConcurrent(t *testing.T) {
	l := newLab(t)
	h := l.hosts[1]
	p := crowd(3)
	l.tell(p)
	ctx := context.Background()
	attach := func(i int, ns string) error {
		return h.Attach(ctx, AttachRequest{NetworkID: "crowd", ID: fmt.Sprint("b", i),
			Addr: netip.MustParseAddr(fmt.Sprintf("10.32.250.%d", 1+i)), NetNS: nsPath(ns), IfName: "eth0"})
	}
	const count = 8
	for i := range count {
		l.netns(fmt.Sprint("skov-b", i))
	}
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			for round := range 6 {
				if err := attach(i, fmt.Sprint("skov-b", i)); err != nil {
					t.Error(err)
				}
				if round < 5 {
					if err := h.Detach(ctx, "crowd", fmt.Sprint("b", i)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	e := p.endpoints[5]
	group.Go(func() {
		for i := range 41 {
			e.Serving = i%2 == 1
			if err := h.Apply(ctx, false, []cluster.Item{endpointItem(e)}); err != nil {
				t.Error(err)
			}
		}
	})
	group.Go(func() {
		for range 20 {
			h.Lookup("crowd", "s1")
			h.Networks()
			if err := h.Repair(ctx, true); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
	for i := range count {
		ns := fmt.Sprint("skov-b", i)
		got := l.nft(ns, "list chain ip skep-overlay vip-10.32.1.5")
		if strings.Contains(got, e.Addr.String()) || !strings.Contains(got, "mod 9 map") {
			t.Errorf("%s: %s", ns, got)
		}
		if err := h.Release(ctx, fmt.Sprint("b", i)); err != nil {
			t.Error(err)
		}
	}
	if n := len(h.sandboxes); n != 0 {
		t.Errorf("%d namespaces are remembered", n)
	}
}
