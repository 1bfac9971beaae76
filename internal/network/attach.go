package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/cluster"
)

// Swarm gives plain containers places in the swarm's attachable networks.
type Swarm interface {
	// Attach asks for a place in a network, by name or id, for a container that
	// is to answer to names; wanted is the address asked for, or zero. Kinds of
	// error: NotFound, PermissionDenied for a network that is not attachable.
	Attach(ctx context.Context, network, containerID string, wanted netip.Addr, names []string) (Place, error)
	// Detach gives a place back. It is idempotent.
	Detach(ctx context.Context, taskID string) error
}

// Place is a container's place in a swarm network, as the swarm gave it.
type Place struct {
	TaskID    string // by which it is given back
	NetworkID string
	Addr      netip.Addr
}

const (
	// knownWithin is how long the swarm may take to tell this node of a network
	// that one of its containers was given a place in.
	knownWithin = 20 * time.Second
	// detachWithin bounds what a container's end waits for the swarm.
	detachWithin  = 3 * time.Second
	detachRetries = 15 * time.Second
)

// admit turns a wish for a place in a swarm network without an address into one
// with the address that the swarm gives. Other wishes come back as they are. The
// place's task is noted until the sandbox is on record.
func (m *Manager) admit(ctx context.Context, s *sandbox, er EndpointRequest, plain bool) (EndpointRequest, error) {
	if m.cfg.Swarm == nil || er.Addr.IsValid() && !plain || m.known(er.Network) != nil {
		return er, nil
	}
	place, err := m.cfg.Swarm.Attach(ctx, er.Network, s.ContainerID, er.Addr, dnsNames(s, er.Aliases))
	switch {
	case errdefs.IsPermissionDenied(err):
		return er, cluster.Deniedf("Could not attach to network %s: rpc error: code = PermissionDenied desc = %v", er.Network, err)
	case errdefs.IsNotFound(err):
		return er, cluster.NotFoundf("network %s not found", er.Network)
	case err != nil:
		return er, fmt.Errorf("could not attach to network %s: %w", er.Network, err)
	}
	er.Network, er.Addr, er.task = place.NetworkID, place.Addr, place.TaskID
	err = m.placesDir.put(place.TaskID, place)
	if err == nil {
		err = m.untilKnown(ctx, place.NetworkID)
	}
	if err != nil {
		m.giveBack(context.WithoutCancel(ctx), place.TaskID)
		return er, err
	}
	return er, nil
}

// admitAll is admit for all wishes: on an error nothing is kept.
func (m *Manager) admitAll(ctx context.Context, s *sandbox, wishes []EndpointRequest, plain bool) ([]EndpointRequest, error) {
	out := slices.Clone(wishes)
	for i := range out {
		er, err := m.admit(ctx, s, out[i], plain)
		if err != nil {
			m.giveBackAll(context.WithoutCancel(ctx), out[:i])
			return nil, err
		}
		out[i] = er
	}
	return out, nil
}

// untilKnown waits until this node was told of a swarm network.
func (m *Manager) untilKnown(ctx context.Context, networkID string) error {
	ctx, cancel := context.WithTimeout(ctx, knownWithin)
	defer cancel()
	for {
		m.mu.Lock()
		applied, ready := m.applied, m.ready[networkID]
		m.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-applied:
		case <-ctx.Done():
			return cluster.Unavailablef("network %s: this node was not told of it within %v", networkID, knownWithin)
		}
	}
}

// noteApplied wakes who waits for a network of the swarm. The overlay knows of
// one before it has made it, so what counts is what it knows now that it is done.
func (m *Manager) noteApplied() {
	ready := map[string]bool{}
	for _, n := range m.swarmNetworks() {
		ready[n.ID] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ready = ready
	close(m.applied)
	m.applied = make(chan struct{})
}

// giveBack returns a container's place to the swarm. If the swarm cannot be
// reached, that stays owed until it can: the place is on record, and a daemon
// that finds it there without a sandbox owes it.
func (m *Manager) giveBack(ctx context.Context, taskID string) {
	if taskID == "" || m.cfg.Swarm == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, detachWithin)
	defer cancel()
	err := m.returnPlace(ctx, taskID)
	if err == nil {
		return
	}
	m.log.Info("a place in a swarm network will be given back later", "task", taskID, "err", err)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owed[taskID] = true
}

func (m *Manager) returnPlace(ctx context.Context, taskID string) error {
	if err := m.cfg.Swarm.Detach(ctx, taskID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return m.placesDir.remove(taskID)
}

func (m *Manager) giveBackAll(ctx context.Context, wishes []EndpointRequest) {
	for _, er := range wishes {
		m.giveBack(ctx, er.task)
	}
}

// payDebts gives back what is owed to the swarm, until ctx ends.
func (m *Manager) payDebts(ctx context.Context) error {
	if m.cfg.Swarm == nil {
		return nil
	}
	for {
		m.mu.Lock()
		owed := sortedKeys(m.owed)
		m.mu.Unlock()
		for _, id := range owed {
			if err := m.returnPlace(ctx, id); err != nil {
				m.log.Debug("place not given back yet", "task", id, "err", err)
				break
			}
			m.mu.Lock()
			delete(m.owed, id)
			m.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(detachRetries):
		}
	}
}

// loadDebts reads which places are held, and finds those that no sandbox on
// record is in.
func (m *Manager) loadDebts() error {
	held := map[string]bool{}
	for _, s := range m.sandboxes {
		for _, ep := range s.Endpoints {
			held[ep.Task] = true
		}
	}
	return m.placesDir.load(func(data []byte) error {
		var p Place
		if err := json.Unmarshal(data, &p); err != nil {
			return err
		}
		if !held[p.TaskID] {
			m.owed[p.TaskID] = true
		}
		return nil
	})
}
