package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
)

// update asks a published service without a pause, on all hosts and with a new
// connection each time, while it changes. The peer's mesh needs IPVS, so it is
// not asked; the reference loses some in each step.
func update(ctx context.Context, b *bench) error {
	b.peer = nil
	if err := b.swarms(ctx, 3, 1); err != nil {
		return err
	}
	lead := b.ours.hosts[0]
	spec := service("web", 6)
	onIngress(&spec)
	spec.TaskTemplate.ContainerSpec.Args = []string{"bench", "serve"}
	spec.TaskTemplate.ContainerSpec.StopSignal = "SIGTERM"
	// Without one, a task serves as soon as its process is there, listening or not.
	spec.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{
		Test: []string{"CMD", "bench", "check"}, Interval: time.Second, Timeout: 5 * time.Second, Retries: 3,
	}
	id, err := lead.create(ctx, spec)
	if err != nil {
		return err
	}
	if err := lead.running(ctx, id, 6); err != nil {
		return err
	}
	return b.each(ctx, func(run int, s *side) error {
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"update-stop-first", func() error { return lead.roll(ctx, id, fmt.Sprint("stop", run), "stop-first") }},
			{"update-start-first", func() error { return lead.roll(ctx, id, fmt.Sprint("start", run), "start-first") }},
			{"scale-down", func() error { return s.rescale(ctx, id, 2) }},
			{"scale-up", func() error { return s.rescale(ctx, id, 6) }},
			{"drain", func() error { return s.drain(ctx, id) }},
		} {
			l := b.load(ctx)
			err := step.do()
			asked, lost, last := l()
			if err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if lost > 0 {
				fmt.Fprintf(os.Stderr, "%s: the last error: %v\n", step.name, last)
			}
			b.recordWorst(s, "lost-in-"+step.name, "requests", float64(lost))
			b.record(s, "asked-in-"+step.name, "requests", float64(asked))
		}
		return nil
	})
}

// roll updates the service and waits for its end.
func (h *host) roll(ctx context.Context, id, env, order string) error {
	err := h.change(ctx, id, func(spec *swarm.ServiceSpec) {
		spec.TaskTemplate.ContainerSpec.Env = []string{"RUN=" + env}
		spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Order: swarm.UpdateOrder(order), Monitor: time.Second}
	})
	if err != nil {
		return err
	}
	err = await(ctx, "the update", 50*time.Millisecond, func() (bool, error) {
		var s swarm.Service
		err := h.call(ctx, "GET", "/services/"+id, nil, &s)
		return err == nil && s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStateCompleted, err
	})
	if err != nil {
		return err
	}
	return h.running(ctx, id, 6)
}

func (s *side) rescale(ctx context.Context, id string, n uint64) error {
	h := s.hosts[0]
	if err := h.change(ctx, id, func(spec *swarm.ServiceSpec) { *spec.Mode.Replicated.Replicas = n }); err != nil {
		return err
	}
	if err := h.running(ctx, id, n); err != nil {
		return err
	}
	return pause(ctx, 2*time.Second) // the old ones stop meanwhile
}

// drain empties the second host and opens it again.
func (s *side) drain(ctx context.Context, id string) error {
	h, node := s.hosts[0], s.hosts[1]
	nodeID, err := node.nodeID(ctx)
	if err != nil {
		return err
	}
	availability := func(a swarm.NodeAvailability) error {
		var n swarm.Node
		if err := h.call(ctx, "GET", "/nodes/"+nodeID, nil, &n); err != nil {
			return err
		}
		n.Spec.Availability = a
		return h.call(ctx, "POST", fmt.Sprintf("/nodes/%s/update?version=%d", nodeID, n.Version.Index), n.Spec, nil)
	}
	if err := availability(swarm.NodeAvailabilityDrain); err != nil {
		return err
	}
	err = await(ctx, "the drained host empty", 50*time.Millisecond, func() (bool, error) {
		var cs []struct{ ID string }
		err := node.call(ctx, "GET", "/containers/json", nil, &cs)
		return len(cs) == 0, err
	})
	if err != nil {
		return err
	}
	if err := h.running(ctx, id, 6); err != nil {
		return err
	}
	return availability(swarm.NodeAvailabilityActive)
}

// load starts eight clients; the returned function ends them.
func (b *bench) load(ctx context.Context) (end func() (asked, lost int64, last error)) {
	ctx, cancel := context.WithCancel(ctx)
	var n, bad atomic.Int64
	var mu sync.Mutex
	var lastErr error
	var wg sync.WaitGroup
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for c := range 8 {
		wg.Go(func() {
			for i := c; ctx.Err() == nil; i++ {
				n.Add(1)
				resp, err := client.Get("http://" + b.ours.hosts[i%len(b.ours.hosts)].addr + ":8080/")
				if err == nil {
					resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						continue
					}
					err = fmt.Errorf("status %s", resp.Status)
				}
				bad.Add(1)
				mu.Lock()
				lastErr = err
				mu.Unlock()
			}
		})
	}
	return func() (int64, int64, error) {
		cancel()
		wg.Wait()
		return n.Load(), bad.Load(), lastErr
	}
}
