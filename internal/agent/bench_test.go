package agent_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agenttest"
	"github.com/skep-dev/skep/internal/cluster"
)

// BenchmarkTasks brings fifty tasks to RUNNING on a real engine, without a
// network, and takes them away again.
func BenchmarkTasks(b *testing.B) {
	h := newHost(b)
	a := agent.New(agent.Config{Dir: filepath.Join(h.root, "agent"), RunDir: filepath.Join(h.root, "agent-run"), Runtime: h, Network: &agenttest.Network{}, NodeID: "n1"})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	await := func(ok func() bool) {
		for deadline := time.After(2 * time.Minute); !ok(); {
			select {
			case <-a.Changed():
			case <-deadline:
				b.Fatalf("%+v", a.Statuses())
			}
		}
	}
	none := cluster.Item{Kind: cluster.ItemNetwork, ID: "none1", Network: &cluster.WantedNetwork{ID: "none1", Name: "none", Driver: "null"}}
	grace := time.Duration(0)
	var up time.Duration
	for b.Loop() {
		items := []cluster.Item{none}
		for i := range 50 {
			id := fmt.Sprintf("task%d", i)
			items = append(items, cluster.Item{Kind: cluster.ItemTask, ID: id, Task: &cluster.WantedTask{
				ID: id, Name: "web." + id, ServiceName: "web", Slot: i + 1, Desired: cluster.StateRunning,
				Spec:     &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "sleeper:1", Args: []string{"sleep", "1000"}, StopGracePeriod: &grace}},
				Networks: []cluster.Attachment{{NetworkID: "none1"}},
			}})
		}
		began := time.Now()
		if err := a.Assign(ctx, true, items); err != nil {
			b.Fatal(err)
		}
		await(func() bool {
			n := 0
			for _, st := range a.Statuses() {
				if st.State == cluster.StateRunning {
					n++
				}
			}
			return n == 50
		})
		up += time.Since(began)
		if err := a.Assign(ctx, true, nil); err != nil {
			b.Fatal(err)
		}
		await(func() bool { return len(a.Statuses()) == 0 })
	}
	b.ReportMetric(float64(b.N*50)/up.Seconds(), "starts/s")
}
