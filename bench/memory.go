package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// memory measures one host of a side: its idle daemon, as an idle manager, and
// with 50 tasks.
func memory(ctx context.Context, b *bench) error {
	const tasks = 50
	if err := b.stateMemory(1000, 10_000); err != nil {
		return err
	}
	if err := b.hosts(ctx, 1); err != nil {
		return err
	}
	sample := func(name string, less map[*side]float64, per float64) (map[*side]float64, error) {
		if err := pause(ctx, 8*time.Second); err != nil { // what starting used is given back
			return nil, err
		}
		sum := map[*side]float64{}
		for range b.m.runs {
			for _, s := range b.sides() {
				v, err := s.hosts[0].memory()
				if err != nil {
					return nil, err
				}
				b.record(s, name, "MB", (v-less[s])/per)
				sum[s] += v / float64(b.m.runs)
			}
			if err := pause(ctx, 2*time.Second); err != nil {
				return nil, err
			}
		}
		return sum, nil
	}
	if _, err := sample("memory-idle-daemon", nil, 1); err != nil {
		return err
	}
	for _, s := range b.sides() {
		if err := s.swarm(ctx, 1); err != nil {
			return err
		}
	}
	idle, err := sample("memory-idle-manager", nil, 1)
	if err != nil {
		return err
	}
	for _, s := range b.sides() {
		id, err := s.hosts[0].create(ctx, service("m", tasks))
		if err != nil {
			return err
		}
		if err := s.hosts[0].running(ctx, id, tasks); err != nil {
			return err
		}
	}
	_, err = sample("memory-a-task", idle, tasks)
	return err
}

// stateMemory measures the replicated state of a large swarm alone: a store in
// this process. What a manager needs for its sessions with the nodes is not in it.
func (b *bench) stateMemory(nodes, tasks int) error {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / 1e6
	}
	before := heap()
	st := store.New()
	if err := st.Apply(1, store.Entry{At: time.Unix(1, 0), Changes: largeState(nodes, tasks)}); err != nil {
		return err
	}
	b.record(b.ours, fmt.Sprintf("memory-state-%d-nodes-%d-tasks", nodes, tasks), "MB", heap()-before)
	runtime.KeepAlive(st)
	return nil
}

// largeState is a swarm of services of 100 running tasks with an address each.
func largeState(nodes, tasks int) (cs []store.Change) {
	since := time.Unix(1, 0)
	nodeID := func(i int) string { return fmt.Sprintf("node%021d", i) }
	for i := range nodes {
		cs = append(cs, store.CreateNode(&cluster.Node{
			ID:   nodeID(i),
			Spec: &swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive},
			Description: &swarm.NodeDescription{Hostname: fmt.Sprint("host", i), Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
				Resources: swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30}},
			Status: cluster.NodeStatus{State: swarm.NodeStateReady, Addr: "10.0.0.1", Since: since},
		}))
	}
	for i := range tasks {
		id := fmt.Sprintf("service%018d", i/100)
		if i%100 == 0 {
			spec := service(id, 100)
			cs = append(cs, store.CreateService(&cluster.Service{ID: id, Spec: &spec}))
		}
		cs = append(cs, store.CreateTask(&cluster.Task{
			ID: fmt.Sprintf("task%021d", i), ServiceID: id, SpecVersion: 1, Slot: i%100 + 1, NodeID: nodeID(i % nodes),
			Desired:  cluster.StateRunning,
			Networks: []cluster.Attachment{{NetworkID: "network000000000000000000", Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}},
			Status: cluster.Status{State: cluster.StateRunning, At: since, Message: "started", PID: i + 1, Serving: true,
				ContainerID: fmt.Sprintf("%064d", i)},
		}))
	}
	return cs
}
