package dispatch

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// BenchmarkPass is one pass of the planner after one task of many has changed,
// with what 1,000 sessions are told of it.
func BenchmarkPass(b *testing.B) {
	s := store.New()
	index := uint64(0)
	write := func(changes ...store.Change) {
		index++
		if err := s.Apply(index, store.Entry{At: time.Unix(0, 0), Changes: changes}); err != nil {
			b.Fatal(err)
		}
	}
	write(store.CreateNetwork(&cluster.Network{ID: "net", Spec: &swarm.NetworkSpec{}, Subnet: netip.MustParsePrefix("10.0.0.0/16")}))
	spec := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}}
	write(store.CreateService(&cluster.Service{ID: "web", Spec: spec, VIPs: []cluster.VIP{{NetworkID: "net"}}}))
	version := s.View().Service("web").SpecVersion
	const nodes, tasks = 1000, 10000
	for i := range nodes {
		write(store.CreateNode(&cluster.Node{ID: fmt.Sprintf("n%04d", i), Spec: &swarm.NodeSpec{}}))
	}
	for i := range tasks {
		write(store.CreateTask(&cluster.Task{ID: fmt.Sprintf("t%05d", i), ServiceID: "web", SpecVersion: version, Slot: i + 1,
			NodeID: fmt.Sprintf("n%04d", i%nodes), Desired: cluster.StateRunning,
			Networks: []cluster.Attachment{{NetworkID: "net", Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}},
			Status:   cluster.Status{State: cluster.StateAssigned}}))
	}
	c, err := newCodec()
	if err != nil {
		b.Fatal(err)
	}
	p := newPlanner(c.enc.Marshal)
	never := func(*cluster.Task) bool { return false }
	cursors := make([]cursor, nodes)
	told := 0
	pass := func() {
		v := s.View()
		if err := p.plan(v, never); err != nil {
			b.Fatal(err)
		}
		for i, n := range v.Nodes() {
			items, _ := p.next(n.ID, &cursors[i])
			told += len(items)
		}
	}
	pass()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		told = 0
		write(store.SetStatus(fmt.Sprintf("t%05d", i%tasks), cluster.Status{State: cluster.StateRunning, Serving: true, At: time.Unix(int64(i), 0)}))
		pass()
	}
	b.ReportMetric(float64(told), "items")
}
