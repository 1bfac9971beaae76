package main

import (
	"context"
	"fmt"
	"time"
)

// containerStart: how long one container takes, as typed, through the API, and
// what containerd and runc, both the peer's, take without anybody above them.
func containerStart(ctx context.Context, b *bench) error {
	if err := b.hosts(ctx, 1); err != nil {
		return err
	}
	for _, s := range b.sides() { // the first of each kind pays for what is made once
		for _, network := range []string{"bridge", "none"} {
			if err := b.typedStart(ctx, s, network, nil); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	err := b.each(ctx, func(_ int, s *side) error {
		for _, network := range []string{"bridge", "none"} {
			if err := b.typedStart(ctx, s, network, b.record); err != nil {
				return err
			}
			if err := b.apiStart(ctx, s, network); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || b.peer == nil {
		return err
	}
	return b.alone(ctx)
}

// typedStart types run -d.
func (b *bench) typedStart(ctx context.Context, s *side, network string, record func(*side, string, string, float64)) error {
	h := s.hosts[0]
	m, err := s.meter()
	if err != nil {
		return err
	}
	id, err := s.type_(ctx, h, "run", "-d", "--network", network, imageName, "sleep", "3600")
	if err != nil {
		return err
	}
	wall := m.wall()
	cpu, err := m.used()
	if err != nil {
		return err
	}
	if record != nil {
		record(s, "run-d-"+network, "s", wall)
		record(s, "run-d-"+network+"-cpu", "CPU s", cpu)
	}
	return h.call(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil)
}

// apiStart creates and starts a container without a client's own time.
func (b *bench) apiStart(ctx context.Context, s *side, network string) error {
	h := s.hosts[0]
	began := time.Now()
	id, err := h.runContainer(ctx, network, "sleep", "3600")
	if err != nil {
		return err
	}
	b.record(s, "create-start-"+network, "s", time.Since(began).Seconds())
	return h.call(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil)
}

// runContainer creates and starts a container.
func (h *host) runContainer(ctx context.Context, network string, cmd ...string) (id string, err error) {
	var c struct{ ID string }
	err = h.call(ctx, "POST", "/containers/create", map[string]any{"Image": imageName, "Cmd": cmd, "HostConfig": map[string]any{"NetworkMode": network}}, &c)
	if err != nil {
		return "", err
	}
	return c.ID, h.call(ctx, "POST", "/containers/"+c.ID+"/start", nil, nil)
}
