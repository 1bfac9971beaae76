package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netns"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network/namespace"
)

// Connect gives a running container a place in one more network.
func (m *Manager) Connect(ctx context.Context, containerID string, er EndpointRequest) (*Endpoint, error) {
	give, err := m.boxes.take(ctx, containerID)
	if err != nil {
		return nil, err
	}
	defer give()
	s := m.sandbox(containerID)
	if s == nil {
		return nil, cluster.NotFoundf("container %s has no network namespace", containerID)
	}
	if er, err = m.admit(ctx, s, er, true); err != nil {
		return nil, err
	}
	back := context.WithoutCancel(ctx)
	var old, next *sandbox
	if err = m.prepareGateway(ctx, []EndpointRequest{er}); err == nil {
		old, next, err = m.reserveMore(containerID, er)
	}
	if err == nil {
		if err = m.change(ctx, old, next); err != nil {
			err = errors.Join(err, m.change(back, next, old))
		}
	}
	if err != nil {
		m.giveBack(back, er.task)
		return nil, err
	}
	for i := range next.Endpoints {
		if ep := &next.Endpoints[i]; old.in(ep.NetworkID) == nil && !ep.Hidden {
			return &ep.Endpoint, nil
		}
	}
	return nil, cluster.NotFoundf("network %s not found", er.Network)
}

// reserveMore puts a record with one more endpoint in force.
func (m *Manager) reserveMore(containerID string, er EndpointRequest) (old, next *sandbox, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old = m.sandboxes[containerID]
	if old == nil {
		return nil, nil, cluster.NotFoundf("container %s has no network namespace", containerID)
	}
	if old.NetNS == "" {
		return nil, nil, cluster.Deniedf("container cannot be disconnected from host network or connected to host network")
	}
	for _, ep := range old.Endpoints {
		if ep.Kind == driverNull {
			return nil, nil, cluster.Deniedf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	copied := *old
	next = &copied
	next.Endpoints = slices.Clone(old.Endpoints)
	ep, err := m.place(next, er)
	if err != nil {
		return nil, nil, err
	}
	if ep.Kind == driverHost || ep.Kind == driverNull {
		return nil, nil, cluster.Deniedf("container cannot be connected to %s network", ep.NetworkName)
	}
	next.Endpoints = append(next.Endpoints, *ep)
	if err := m.placeGateway(next); err != nil {
		return nil, nil, err
	}
	m.sandboxes[containerID] = next
	return old, next, nil
}

// Disconnect takes a running container out of a network.
func (m *Manager) Disconnect(ctx context.Context, containerID, ref string, force bool) error {
	give, err := m.boxes.take(ctx, containerID)
	if err != nil {
		return err
	}
	defer give()
	old := m.sandbox(containerID)
	ep, err := m.connected(old, containerID, ref)
	if err != nil {
		return err
	}
	next, err := m.reserveLess(ctx, old, ep)
	if err != nil {
		return err
	}
	if err := m.change(ctx, old, next); err != nil {
		return err
	}
	m.giveBack(ctx, ep.Task)
	return nil
}

// reserveLess puts a record without an endpoint in force, and with or without a
// place in the gateway network, as that is needed then.
func (m *Manager) reserveLess(ctx context.Context, old *sandbox, less *endpoint) (*sandbox, error) {
	next := *old
	next.Endpoints = slices.DeleteFunc(slices.Clone(old.Endpoints), func(e endpoint) bool { return e.NetworkID == less.NetworkID })
	if !slices.ContainsFunc(next.Endpoints, func(e endpoint) bool { return e.External }) {
		next.Endpoints = slices.DeleteFunc(next.Endpoints, func(e endpoint) bool { return e.Hidden })
	}
	if next.needsGateway() {
		if _, err := m.gatewayNetwork(ctx); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.placeGateway(&next); err != nil {
		return nil, err
	}
	m.sandboxes[next.ContainerID] = &next
	return &next, nil
}

// connected finds the endpoint that ref means.
func (m *Manager) connected(s *sandbox, containerID, ref string) (*endpoint, error) {
	if s != nil {
		id := ref
		if r := m.known(ref); r != nil {
			id = r.ID
		} else if n := m.swarmNetwork(ref); n != nil {
			id = n.ID
		}
		for i := range s.Endpoints {
			ep := &s.Endpoints[i]
			switch {
			case ep.Hidden || ep.NetworkID != id && ep.NetworkName != ref:
			case ep.Kind == driverHost:
				return nil, cluster.Deniedf("container cannot be disconnected from host network or connected to host network")
			default:
				return ep, nil
			}
		}
	}
	return nil, cluster.Deniedf("container %s is not connected to network %s", containerID, ref)
}

// change brings a running sandbox from one record to another.
func (m *Manager) change(ctx context.Context, old, next *sandbox) error {
	next.Resolver = old.Resolver || m.wantsResolver(next)
	if err := m.boxesDir.put(next.ContainerID, next); err != nil {
		return err
	}
	m.setSandbox(next.ContainerID, next)
	was, is := old.gateway(), next.gateway()
	moved := was == nil || is == nil || was.EndpointID != is.EndpointID
	if moved {
		if err := m.hide(old); err != nil {
			return err
		}
	}
	var gone, added string
	err := namespace.DoAt(next.NetNS, func(ns netns.NsHandle) error {
		for i := range old.Endpoints {
			if ep := &old.Endpoints[i]; next.in(ep.NetworkID) == nil {
				gone += hostsLine(old, ep)
				if err := m.detach(ctx, old, ep); err != nil {
					return fmt.Errorf("network %s: %w", ep.NetworkName, err)
				}
			}
		}
		for _, ep := range wiring(next) {
			if old.in(ep.NetworkID) == nil {
				added += hostsLine(next, ep)
				if err := m.attach(ctx, next, ep, ns, false); err != nil {
					return fmt.Errorf("network %s: %w", ep.NetworkName, err)
				}
			}
		}
		if moved && is != nil {
			if err := routeVia(ns, is); err != nil {
				return err
			}
		}
		if next.Resolver {
			return m.names.open(next.ContainerID, ns)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if moved {
		if err := m.expose(next); err != nil {
			return err
		}
	}
	return m.changeFiles(old, next, gone, added)
}

// changeFiles brings the files of a running container up to date.
func (m *Manager) changeFiles(old, next *sandbox, gone, added string) error {
	if next.Dir == "" {
		return nil
	}
	if next.Resolver && !old.Resolver {
		if err := os.WriteFile(filepath.Join(next.Dir, "resolv.conf"), m.resolvConf(next), 0o644); err != nil {
			return err
		}
	}
	if gone == "" && added == "" {
		return nil
	}
	return changeHosts(next, gone, added)
}

// wiring returns the endpoints in the order to connect them: swarm networks
// need the gateway network's to be there.
func wiring(s *sandbox) []*endpoint {
	var first, then []*endpoint
	for i := range s.Endpoints {
		if ep := &s.Endpoints[i]; ep.Kind == driverOverlay {
			then = append(then, ep)
		} else {
			first = append(first, ep)
		}
	}
	return append(first, then...)
}
