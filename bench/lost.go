package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// hostLost cuts a worker's power and waits until its tasks run elsewhere.
func hostLost(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 3, 1); err != nil {
		return err
	}
	return b.each(ctx, func(run int, s *side) error {
		lead, victim := s.hosts[0], s.hosts[1+run%2]
		id, err := s.spread(ctx, lead, fmt.Sprint("w", run))
		if err != nil {
			return err
		}
		node, err := victim.nodeID(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.cut(ctx, victim); err != nil {
			return err
		}
		down, err := elsewhere(ctx, []*host{lead}, id, node, began)
		if err != nil {
			return err
		}
		b.record(s, "host-lost-node-down", "s", down.Seconds())
		b.record(s, "host-lost-tasks-elsewhere", "s", time.Since(began).Seconds())
		return s.again(ctx, lead, victim, id)
	})
}

// spread makes a service of six tasks on all hosts.
func (s *side) spread(ctx context.Context, h *host, name string) (string, error) {
	id, err := h.create(ctx, service(name, 6))
	if err != nil {
		return "", err
	}
	if err := h.running(ctx, id, 6); err != nil {
		return "", err
	}
	return id, pause(ctx, 3*time.Second) // past the first moments, in which a failure counts as the service's
}

// elsewhere waits until six tasks of a service run on nodes that are not node,
// and returns when the node was seen down. It asks the first of hosts to answer.
func elsewhere(ctx context.Context, hosts []*host, service, node string, began time.Time) (down time.Duration, err error) {
	err = await(ctx, "the tasks elsewhere", 20*time.Millisecond, func() (bool, error) {
		for _, h := range hosts {
			ok, seen := h.elsewhere(ctx, service, node)
			if seen && down == 0 {
				down = time.Since(began)
			}
			if ok {
				return true, nil
			}
		}
		return false, ctx.Err()
	})
	return down, err
}

func (h *host) elsewhere(ctx context.Context, service, node string) (ok, down bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second) // a manager without a leader may not answer
	defer cancel()
	var n swarm.Node
	if err := h.call(ctx, "GET", "/nodes/"+node, nil, &n); err != nil || n.Status.State != swarm.NodeStateDown {
		return false, false
	}
	ts, err := h.tasks(ctx, service)
	if err != nil {
		return false, true
	}
	up := 0
	for _, t := range ts {
		if t.NodeID != node && t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning {
			up++
		}
	}
	return up == 6, true
}

// again switches a lost host on and takes the service away.
func (s *side) again(ctx context.Context, h, victim *host, id string) error {
	if err := s.start(ctx, victim); err != nil {
		return err
	}
	if err := s.ready(ctx, h); err != nil {
		return err
	}
	if err := h.call(ctx, "DELETE", "/services/"+id, nil, nil); err != nil {
		return err
	}
	return s.emptied(ctx, 0)
}

// leaderLost cuts the leader's power and waits until a write succeeds on one of
// the other managers, and until its tasks run elsewhere.
func leaderLost(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 3, 3); err != nil {
		return err
	}
	return b.each(ctx, func(run int, s *side) error {
		lead, others, err := s.leader(ctx)
		if err != nil {
			return err
		}
		id, err := s.spread(ctx, lead, fmt.Sprint("l", run))
		if err != nil {
			return err
		}
		node, err := lead.nodeID(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.cut(ctx, lead); err != nil {
			return err
		}
		took, err := firstWrite(ctx, others, fmt.Sprint("after", run), began)
		if err != nil {
			return err
		}
		b.record(s, "leader-lost-writes-again", "s", took.Seconds())
		if _, err := elsewhere(ctx, others, id, node, began); err != nil {
			return err
		}
		b.record(s, "leader-lost-tasks-elsewhere", "s", time.Since(began).Seconds())
		return s.again(ctx, others[0], lead, id)
	})
}

// firstWrite has a client at each host write until one succeeds. A client gives
// a call three seconds, as some do not end while there is no leader.
func firstWrite(ctx context.Context, hosts []*host, prefix string, began time.Time) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	for _, h := range hosts {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				call, end := context.WithTimeout(ctx, 3*time.Second)
				err := h.call(call, "POST", "/configs/create", map[string]any{"Name": fmt.Sprintf("%s-%s-%d", prefix, h.name, i), "Data": "eA=="}, nil)
				end()
				if err == nil {
					once.Do(func() { took = time.Since(began) })
					cancel()
					return
				}
				if pause(ctx, 20*time.Millisecond) != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if took == 0 {
		return 0, errors.New("no write in two minutes")
	}
	return took, nil
}
