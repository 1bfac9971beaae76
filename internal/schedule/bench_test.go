package schedule

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// world makes a store of nodes in three zones and waiting tasks of services.
func world(b testing.TB, nodes, services, tasksEach int, change func(*swarm.ServiceSpec)) *store.Store {
	s := store.New()
	var cs []store.Change
	for i := range nodes {
		cs = append(cs, store.CreateNode(&cluster.Node{
			ID:   fmt.Sprintf("n%06d", i),
			Spec: &swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive, Annotations: swarm.Annotations{Labels: map[string]string{"zone": fmt.Sprint(i % 3)}}},
			Description: &swarm.NodeDescription{
				Hostname: fmt.Sprint(i), Platform: swarm.Platform{OS: "linux", Architecture: "amd64"},
				Resources: swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30},
			},
			Status: cluster.NodeStatus{State: swarm.NodeStateReady},
		}))
	}
	for i := range services {
		spec := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: fmt.Sprint("s", i)}}
		if change != nil {
			change(spec)
		}
		id := fmt.Sprintf("s%06d", i)
		cs = append(cs, store.CreateService(&cluster.Service{ID: id, Spec: spec}))
		for j := range tasksEach {
			cs = append(cs, store.CreateTask(&cluster.Task{
				ID: fmt.Sprintf("t%06d.%06d", i, j), ServiceID: id, SpecVersion: 1, Slot: j + 1,
				Desired: cluster.StateRunning, Status: cluster.Status{State: cluster.StatePending},
			}))
		}
	}
	if err := s.Apply(1, store.Entry{At: time.Unix(1, 0), Changes: cs}); err != nil {
		b.Fatal(err)
	}
	return s
}

// cpuTime is what this process has used, its collector too: on a machine that
// does other things the wall clock tells little.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPlan(b *testing.B) {
	constrained := func(spec *swarm.ServiceSpec) {
		spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone!=2"}}
	}
	reserving := func(spec *swarm.ServiceSpec) {
		spec.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e8, MemoryBytes: 1 << 28}}
	}
	spread := func(spec *swarm.ServiceSpec) {
		spec.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{
			{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
		}}
	}
	for _, c := range []struct {
		name                   string
		nodes, services, tasks int
		change                 func(*swarm.ServiceSpec)
	}{
		{"1k nodes, 100k services of 1", 1000, 100_000, 1, nil},
		{"1k nodes, 1k services of 100", 1000, 1000, 100, nil},
		{"1k nodes, 1 service of 100k", 1000, 1, 100_000, nil},
		{"1k nodes, 1k reserving services of 100", 1000, 1000, 100, reserving},
		{"1k nodes, 1k spread services of 100", 1000, 1000, 100, spread},
		{"5k nodes, 1k constrained services of 100", 5000, 1000, 100, constrained},
		{"10k nodes, 10k services of 100", 10_000, 10_000, 100, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			v := world(b, c.nodes, c.services, c.tasks, c.change).View()
			b.ReportAllocs()
			began := cpuTime(b)
			for b.Loop() {
				if todo := newLedger().Plan(time.Unix(2, 0), v); len(todo) != c.services*c.tasks {
					b.Fatalf("%d tasks placed", len(todo))
				}
			}
			b.ReportMetric((cpuTime(b)-began).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

// BenchmarkPass is a pass in which one task of 100k has changed.
func BenchmarkPass(b *testing.B) {
	s := world(b, 1000, 1000, 100, nil)
	l := newLedger()
	index := uint64(1)
	apply := func(cs []store.Change) {
		index++
		if err := s.Apply(index, store.Entry{At: time.Unix(2, 0), Changes: cs}); err != nil {
			b.Fatal(err)
		}
	}
	var cs []store.Change
	for _, g := range l.Plan(time.Unix(2, 0), s.View()) {
		cs = append(cs, g...)
	}
	apply(cs)
	for i := 0; b.Loop(); i++ {
		t := s.View().Task(fmt.Sprintf("t%06d.%06d", i%1000, i/1000%100))
		apply([]store.Change{store.SetStatus(t.ID, cluster.Status{State: cluster.StateRunning, PID: i})})
		if todo := l.Plan(time.Unix(2, 0), s.View()); len(todo) != 0 {
			b.Fatalf("%d writes", len(todo))
		}
	}
}
