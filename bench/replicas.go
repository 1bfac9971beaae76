package main

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// The kinds of service whose replicas are measured.
func plain(*swarm.ServiceSpec) {}

func onOverlay(spec *swarm.ServiceSpec) {
	spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
}

func onIngress(spec *swarm.ServiceSpec) {
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{
		Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress,
	}}}
}

// replicas measures services of 1, 10, 50 and 100 replicas on three hosts, from
// create to all running.
func replicas(name string, kind func(*swarm.ServiceSpec)) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error {
		if err := b.swarms(ctx, 3, 1); err != nil {
			return err
		}
		for _, s := range b.sides() {
			if err := s.hosts[0].network(ctx, "back"); err != nil {
				return err
			}
			if _, _, err := s.replicas(ctx, 6, kind); err != nil { // warms both up
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		for _, n := range []uint64{1, 10, 50, 100} {
			err := b.each(ctx, func(_ int, s *side) error {
				wall, cpu, err := s.replicas(ctx, n, kind)
				if err != nil {
					return err
				}
				b.record(s, fmt.Sprintf("%s-%d", name, n), "s", wall)
				b.record(s, fmt.Sprintf("%s-%d-cpu", name, n), "CPU s", cpu)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// replicas creates a service, waits until its tasks run and removes it.
func (s *side) replicas(ctx context.Context, n uint64, kind func(*swarm.ServiceSpec)) (wall, cpu float64, err error) {
	spec := service("b", n)
	kind(&spec)
	m, err := s.meter()
	if err != nil {
		return 0, 0, err
	}
	id, err := s.hosts[0].create(ctx, spec)
	if err != nil {
		return 0, 0, err
	}
	if err := s.hosts[0].running(ctx, id, n); err != nil {
		return 0, 0, err
	}
	wall = m.wall()
	if cpu, err = m.used(); err != nil {
		return 0, 0, err
	}
	if err := s.remove(ctx, id, 0); err != nil {
		return 0, 0, err
	}
	return wall, cpu, pause(ctx, 500*time.Millisecond)
}

// scale measures a service on three hosts from 1 replica to 50 and back to 1,
// the latter until the other containers are gone.
func scale(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 3, 1); err != nil {
		return err
	}
	return b.each(ctx, func(_ int, s *side) error {
		lead := s.hosts[0]
		id, err := lead.create(ctx, service("s", 1))
		if err != nil {
			return err
		}
		if err := lead.running(ctx, id, 1); err != nil {
			return err
		}
		for _, step := range []struct {
			name string
			n    uint64
		}{{"scale-1-to-50", 50}, {"scale-50-to-1", 1}} {
			m, err := s.meter()
			if err != nil {
				return err
			}
			if err := lead.change(ctx, id, func(spec *swarm.ServiceSpec) { *spec.Mode.Replicated.Replicas = step.n }); err != nil {
				return err
			}
			if err := lead.running(ctx, id, step.n); err != nil {
				return err
			}
			if err := s.emptied(ctx, int(step.n)); err != nil {
				return err
			}
			wall := m.wall()
			cpu, err := m.used()
			if err != nil {
				return err
			}
			b.record(s, step.name, "s", wall)
			b.record(s, step.name+"-cpu", "CPU s", cpu)
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
		}
		return s.remove(ctx, id, 0)
	})
}
