// Package swarmevents tells the users of a manager what changes in the swarm:
// services, nodes, networks, secrets and configs that come, change and go. It
// reads the replicated state and changes nothing. daemon runs it beside the API.
package swarmevents

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// lookAgain is how often a node that is no manager looks whether it is one now.
const lookAgain = time.Second

// lookShare bounds what looking costs while much is written: it takes at most one
// part in lookShare of the time.
const lookShare = 100

// Watcher publishes what it sees.
type Watcher struct {
	// State returns the swarm's state, or an error while this node is no manager.
	State func() (*store.Store, error)
	// Woken is signalled when this node has begun a swarm. Otherwise the watcher
	// finds within lookAgain that it is a manager: what was there is no news then.
	Woken <-chan struct{}
	// Publish is *engine.Engine's PublishSwarm.
	Publish func(typ events.Type, action events.Action, actor events.Actor)
}

// Run watches until ctx ends. What was there before this node became a manager
// is not news.
func (w *Watcher) Run(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	looked := time.Now()
	for ctx.Err() == nil {
		if st, err := w.State(); err == nil {
			looked = w.follow(ctx, st, looked, tick.C)
			continue // there may be another already
		}
		looked = time.Now()
		select {
		case <-tick.C:
		case <-w.Woken:
		case <-ctx.Done():
		}
	}
	return nil
}

// follow watches one store for as long as it is this node's, and returns when it
// was last seen to be. What came since is news.
func (w *Watcher) follow(ctx context.Context, st *store.Store, since time.Time, tick <-chan time.Time) (seen time.Time) {
	wake, stop := st.Watch(store.KindService, store.KindNode, store.KindNetwork, store.KindSecret, store.KindConfig)
	defer stop()
	seen = time.Now()
	last := look(st.View()).before(since)
	ours := func() bool {
		now := time.Now()
		if cur, err := w.State(); err != nil || cur != st {
			return false
		}
		seen = now
		return true
	}
	for {
		start := time.Now()
		now := look(st.View())
		for _, e := range diff(last, now) {
			w.Publish(e.Type, e.Action, e.Actor)
		}
		last = now
		pause := time.NewTimer((lookShare - 1) * time.Since(start))
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		select {
		case <-wake:
		case <-tick:
			if !ours() {
				return seen
			}
		case <-w.Woken:
			if !ours() {
				return seen
			}
		case <-ctx.Done():
			return seen
		}
	}
}

// object is one thing as its events describe it.
type object struct {
	id, name string
	created  time.Time
	// facts are what an update tells the old and the new of; one that is "" is
	// not told.
	facts map[string]string
	// version changes with what users wrote, which is news even when no fact is.
	version uint64
	// settled is true of a network that has its subnet. That it came to have it is
	// an update of its own, however soon after the network itself.
	settled bool
}

// picture is what events tell of, as the store lists it: sorted by id. The store
// never changes an object that it has given out, so that what is the same
// pointer is the same thing.
type picture struct {
	nodes    []*cluster.Node
	networks []*cluster.Network
	secrets  []*cluster.Secret
	configs  []*cluster.Config
	services []*cluster.Service
}

func look(v store.View) picture {
	return picture{v.Nodes(), v.Networks(), v.Secrets(), v.Configs(), v.Services()}
}

// before leaves out of a picture what was created at since or later.
func (p picture) before(since time.Time) picture {
	return picture{
		older(p.nodes, since, nodeObject), older(p.networks, since, networkObject), older(p.secrets, since, secretObject),
		older(p.configs, since, configObject), older(p.services, since, serviceObject),
	}
}

func older[T any](list []*T, since time.Time, describe func(*T) object) (out []*T) {
	for _, o := range list {
		if describe(o).created.Before(since) {
			out = append(out, o)
		}
	}
	return out
}

func networkObject(n *cluster.Network) object {
	return object{id: n.ID, name: n.Spec.Name, created: n.CreatedAt, settled: n.Subnet.IsValid()}
}

func secretObject(s *cluster.Secret) object {
	return object{id: s.ID, name: s.Spec.Name, created: s.CreatedAt, version: s.Version}
}

func configObject(c *cluster.Config) object {
	return object{id: c.ID, name: c.Spec.Name, created: c.CreatedAt, version: c.Version}
}

func nodeObject(n *cluster.Node) object {
	o := object{id: n.ID, name: n.Spec.Name, created: n.CreatedAt, version: n.SpecVersion, facts: map[string]string{
		"availability": string(n.Spec.Availability), "role": string(n.Spec.Role), "state": string(n.Status.State),
	}}
	if o.name == "" && n.Description != nil {
		o.name = n.Description.Hostname
	}
	return o
}

func serviceObject(s *cluster.Service) object {
	o := object{id: s.ID, name: s.Spec.Name, created: s.CreatedAt, version: s.SpecVersion, facts: map[string]string{}}
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		o.facts["image"] = c.Image
	}
	if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		o.facts["replicas"] = itoa(*r.Replicas)
	}
	if s.Update != nil {
		o.facts["updatestate"] = string(s.Update.State)
	}
	return o
}
