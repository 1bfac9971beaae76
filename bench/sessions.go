package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// sessions measures a real manager with a thousand sessions: their joins, what
// they cost while nothing happens, a service of ten thousand replicas on them, and
// its end. The nodes are in this process, and what they cost is not counted. Only
// our nodes can be played, so there is no peer. $NODES makes it a smaller swarm,
// with ten tasks a node.
func sessions(ctx context.Context, b *bench) error {
	b.peer = nil
	nodes, err := envInt("NODES", 1000)
	if err != nil {
		return err
	}
	for range b.m.runs {
		if err := b.sessionsOnce(ctx, nodes, 10*nodes); err != nil {
			return err
		}
		if err := b.clear(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) sessionsOnce(ctx context.Context, nodes, tasks int) error {
	s := b.ours
	if err := s.create(ctx, 1); err != nil {
		return err
	}
	h := s.hosts[0]
	token, err := h.largeSwarm(ctx)
	if err != nil {
		return err
	}
	if err := b.resting(ctx, "sessions-none"); err != nil {
		return err
	}
	var c *crowd
	err = b.busy(ctx, "sessions-join", func() (err error) {
		c, err = joinCrowd(ctx, h.addr+":2377", token, nodes)
		return err
	})
	if err != nil {
		return err
	}
	defer c.leave()
	if err := h.allReady(ctx, nodes); err != nil {
		return err
	}
	if err := b.resting(ctx, "sessions-idle"); err != nil {
		return err
	}
	var id string
	err = b.busy(ctx, "sessions-tasks-running", func() (err error) {
		id, err = h.replicate(ctx, "large", tasks)
		return err
	})
	if err != nil {
		return err
	}
	if err := b.resting(ctx, "sessions-tasks-idle"); err != nil {
		return err
	}
	if err := h.allReady(ctx, nodes); err != nil {
		return err
	}
	err = b.busy(ctx, "sessions-tasks-gone", func() error {
		if err := h.call(ctx, "DELETE", "/services/"+id, nil, nil); err != nil {
			return err
		}
		return await(ctx, "no task left", 50*time.Millisecond, func() (bool, error) { return c.tasks() == 0, nil })
	})
	lost, why := c.lost()
	b.record(b.ours, "sessions-lost", "sessions", float64(lost))
	if lost > 0 {
		fmt.Fprintln(os.Stderr, "sessions were lost:", why)
	}
	return err
}

// sessionsLost cuts the leader's power under a thousand sessions with ten thousand
// tasks, and waits until a write succeeds, until new tasks run, and until every
// node has its session with the next leader and has been told all that it is to
// do. Real nodes hear of the loss from their gossip; these are told when gossip
// would have told them.
func sessionsLost(ctx context.Context, b *bench) error {
	b.peer = nil
	nodes, err := envInt("NODES", 1000)
	if err != nil {
		return err
	}
	for range b.m.runs {
		if err := b.sessionsLostOnce(ctx, nodes, 10*nodes); err != nil {
			return err
		}
		if err := b.clear(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) sessionsLostOnce(ctx context.Context, nodes, tasks int) error {
	const noticed = 1500 * time.Millisecond // by the first of them
	s := b.ours
	if err := s.create(ctx, 3); err != nil {
		return err
	}
	lead, others := s.hosts[0], s.hosts[1:]
	token, err := lead.largeSwarm(ctx, others...)
	if err != nil {
		return err
	}
	c, err := joinCrowd(ctx, lead.addr+":2377", token, nodes)
	if err != nil {
		return err
	}
	defer c.leave()
	if _, err := lead.replicate(ctx, "large", tasks); err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	before := c.sessions()
	m, err := (&side{hosts: others}).meter()
	if err != nil {
		return err
	}
	if err := s.cut(ctx, lead); err != nil {
		return err
	}
	c.gossip(noticed, time.Second)
	took, err := firstWrite(ctx, others, "after", m.began)
	if err != nil {
		return err
	}
	b.record(s, "sessions-lost-writes-again", "s", took.Seconds())
	for _, part := range []struct {
		name  string
		nodes int
	}{{"sessions-lost-half-told", nodes / 2}, {"sessions-lost-all-told", nodes}} {
		err := await(ctx, part.name, 10*time.Millisecond, func() (bool, error) { return c.told(before) >= part.nodes, nil })
		if err != nil {
			lost, why := c.lost()
			return fmt.Errorf("%w; %d sessions were lost: %s", err, lost, why)
		}
		b.record(s, part.name, "s", m.wall())
	}
	lost, why := c.lost()
	fmt.Fprintf(os.Stderr, "%d sessions were lost: %s\n", lost, why)
	if _, err := others[0].replicate(ctx, "after", nodes); err != nil {
		return err
	}
	b.record(s, "sessions-lost-new-tasks", "s", m.wall())
	cpu, err := m.used()
	b.record(s, "sessions-lost-cpu", "CPU s", cpu)
	return err
}

// replicate makes a service and waits until its tasks run.
func (h *host) replicate(ctx context.Context, name string, n int) (id string, err error) {
	if id, err = h.create(ctx, service(name, uint64(n))); err != nil {
		return "", err
	}
	return id, h.running(ctx, id, uint64(n))
}

// largeSwarm makes a swarm whose networks have room for the nodes, with the hosts
// as its managers, which take no tasks. It returns the workers' token.
func (h *host) largeSwarm(ctx context.Context, others ...*host) (token string, err error) {
	err = h.call(ctx, "POST", "/swarm/init", map[string]any{
		"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": h.addr, "Availability": "drain",
		"DefaultAddrPool": []string{"10.64.0.0/10"}, "SubnetSize": 16,
	}, nil)
	if err != nil {
		return "", err
	}
	var sw swarm.Swarm
	if err := h.call(ctx, "GET", "/swarm", nil, &sw); err != nil {
		return "", err
	}
	for _, o := range others {
		join := map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": o.addr, "RemoteAddrs": []string{h.addr + ":2377"},
			"JoinToken": sw.JoinTokens.Manager, "Availability": "drain"}
		if err := o.call(ctx, "POST", "/swarm/join", join, nil); err != nil {
			return "", err
		}
	}
	return sw.JoinTokens.Worker, nil
}

// allReady makes sure that the manager sees its nodes, all of them, ready.
func (h *host) allReady(ctx context.Context, n int) error {
	return await(ctx, "all nodes ready", 500*time.Millisecond, func() (bool, error) {
		var nodes []swarm.Node
		if err := h.call(ctx, "GET", "/nodes", nil, &nodes); err != nil {
			return false, err
		}
		up := 0
		for _, node := range nodes {
			if node.Status.State == swarm.NodeStateReady {
				up++
			}
		}
		return up == n+1, nil
	})
}

// busy measures what something takes, and the most memory that it took meanwhile.
func (b *bench) busy(ctx context.Context, name string, do func() error) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	h := b.ours.hosts[0]
	looking, stop := context.WithCancel(ctx)
	peak := make(chan float64, 1)
	go func() {
		most := 0.0
		for pause(looking, 100*time.Millisecond) == nil {
			if v, err := h.memory(); err == nil {
				most = max(most, v)
			}
		}
		peak <- most
	}()
	defer stop()
	m, err := b.ours.meter()
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	wall := m.wall()
	cpu, err := m.used()
	if err != nil {
		return err
	}
	stop()
	b.record(b.ours, name, "s", wall)
	b.record(b.ours, name+"-cpu", "CPU s", cpu)
	b.record(b.ours, name+"-peak", "MB", <-peak)
	return nil
}

// resting measures memory and CPU of a manager that has nothing to do but hear
// heartbeats: over four of their periods, after what went before has settled.
func (b *bench) resting(ctx context.Context, name string) error {
	const settle, window = 10 * time.Second, 20 * time.Second
	if err := pause(ctx, settle); err != nil {
		return err
	}
	m, err := b.ours.meter()
	if err != nil {
		return err
	}
	if err := pause(ctx, window); err != nil {
		return err
	}
	cpu, err := m.used()
	if err != nil {
		return err
	}
	mem, err := b.ours.hosts[0].memory()
	if err != nil {
		return err
	}
	b.record(b.ours, name+"-memory", "MB", mem)
	b.record(b.ours, name+"-cpu", "CPU ms/s", 1000*cpu/m.wall())
	return nil
}
