package overlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/skep-dev/skep/internal/cluster"
)

// TestIncrements: a node that is told changes one by one ends up with what a
// node knows that is told everything at once, whatever the order.
func TestIncrements(t *testing.T) {
	self := netip.MustParseAddr("10.99.0.1")
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		told := map[string]cluster.Item{}
		m, view := model{}, (*view)(nil)
		for range 60 {
			it := randomItem(r)
			told[fmt.Sprint(it.Kind, it.ID)] = it
			var touched map[string]bool
			if m, touched = m.apply(false, []cluster.Item{it}); !touched["app"] {
				t.Fatal("the network was not touched")
			}
			if n := m["app"]; n != nil && n.net != nil {
				view = n.view(view, self)
			} else {
				view = nil
			}
		}
		var all []cluster.Item
		for _, it := range told {
			all = append(all, it)
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		whole, _ := model{}.apply(true, all)
		if n := whole["app"]; n == nil || n.net == nil {
			if view != nil {
				t.Fatalf("seed %d: a view of a network that is not there", seed)
			}
			continue
		}
		want := whole["app"].view(nil, self)
		opts := []cmp.Option{
			cmp.AllowUnexported(*want, target{}, name{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmpopts.IgnoreFields(*want, "gone"), // the one thing that is about the past
			cmpopts.EquateEmpty(),
			cmpopts.SortSlices(func(a, b netip.Addr) bool { return a.Less(b) }),
		}
		if diff := cmp.Diff(want, view, opts...); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		for _, e := range view.endpoints {
			for _, g := range view.gone {
				if e.Addr == g {
					t.Fatalf("seed %d: %s is here and counts as gone", seed, g)
				}
			}
		}
	}
}

// randomItem is a change of one of a few things in the network app.
func randomItem(r *rand.Rand) cluster.Item {
	i := r.IntN(6)
	forget := r.IntN(4) == 0
	switch r.IntN(10) {
	case 0:
		it := cluster.Item{Kind: cluster.ItemNetwork, ID: "app"}
		if r.IntN(10) > 0 {
			it.Network = &cluster.WantedNetwork{ID: "app", Name: "app", VNI: 5, Subnet: netip.MustParsePrefix("10.0.1.0/24")}
		}
		return it
	case 1:
		it := cluster.Item{Kind: cluster.ItemPeer, ID: fmt.Sprint("app/n", i)}
		if !forget {
			it.Peer = &cluster.Peer{NetworkID: "app", NodeID: fmt.Sprint("n", i), DataAddr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i)})}
		}
		return it
	case 2, 3:
		it := cluster.Item{Kind: cluster.ItemService, ID: fmt.Sprint("app/s", i)}
		if !forget {
			it.Service = &cluster.VirtualService{NetworkID: "app", ServiceID: fmt.Sprint("s", i), Name: fmt.Sprint("s", i),
				Aliases: []string{fmt.Sprint("a", r.IntN(3))}, VIP: netip.AddrFrom4([4]byte{10, 0, 1, byte(200 + i)})}
		}
		return it
	default:
		i = r.IntN(20)
		it := cluster.Item{Kind: cluster.ItemEndpoint, ID: fmt.Sprint("app/t", i)}
		if !forget {
			it.Endpoint = &cluster.Endpoint{NetworkID: "app", TaskID: fmt.Sprint("t", i), NodeID: "n1",
				DataAddr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i % 4)}), Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)}),
				ServiceID: fmt.Sprint("s", i%6), Names: []string{fmt.Sprint("task", i)}, Serving: r.IntN(3) > 0}
		}
		return it
	}
}
