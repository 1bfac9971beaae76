package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// Adopt tells which containers still run after the daemon's restart; sandboxes
// of others are removed. The kept ones are found on disk and go on unharmed.
func (m *Manager) Adopt(ctx context.Context, running []string) error {
	m.mu.Lock()
	all := sortedKeys(m.sandboxes)
	m.mu.Unlock()
	var errs []error
	for _, id := range all {
		if err := m.adoptOne(ctx, id, slices.Contains(running, id)); err != nil {
			errs = append(errs, fmt.Errorf("sandbox of %s: %w", id, err))
		}
	}
	return errors.Join(append(errs, m.sweep())...)
}

func (m *Manager) adoptOne(ctx context.Context, id string, running bool) error {
	give, err := m.boxes.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	s := m.sandbox(id)
	if s == nil || m.isAdopted(id) {
		return nil
	}
	if !running || s.NetNS != "" && !namespace.At(s.NetNS) {
		m.log.Info("sandbox removed, its container does not run", "container", id)
		return m.dismantle(ctx, s)
	}
	m.mu.Lock()
	m.adopted[id] = true
	m.mu.Unlock()
	return m.resume(ctx, s)
}

func (m *Manager) isAdopted(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.adopted[id]
}

// resume takes up again what only the daemon can do for a sandbox: hold its
// ports, publish them, answer names, and tell the overlay of it.
func (m *Manager) resume(ctx context.Context, s *sandbox) error {
	var errs []error
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		if ep.Kind != driverOverlay {
			continue
		}
		// The swarm may have dropped the network while the daemon was away.
		if err := m.attachSwarm(ctx, s, ep); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("network %s: %w", ep.NetworkName, err))
		}
	}
	for _, b := range s.Ports {
		// The rules work without the socket: that somebody took the port while
		// the daemon was away must not cut off a container that runs.
		if _, err := m.ports.bind(s.ContainerID, []wish{{binding: b, from: b.HostPort, to: b.HostPort}}); err != nil {
			m.log.Warn("published port cannot be held again", "container", s.ContainerID, "err", err)
		}
	}
	if err := m.fw.publish(s.targets()); err != nil {
		errs = append(errs, err)
	}
	if s.Resolver && s.NetNS != "" {
		errs = append(errs, namespace.DoAt(s.NetNS, func(ns netns.NsHandle) error {
			return m.names.open(s.ContainerID, ns)
		}))
	}
	return errors.Join(errs...)
}
