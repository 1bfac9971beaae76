// Package swarmevents tells the users of a manager what changes in the swarm:
// services, nodes, networks, secrets and configs that come, change and go. It
// reads the replicated state and changes nothing. daemon runs it beside the API.
package swarmevents

import (
	"context"
	"slices"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// lookAgain is how often a node that is no manager looks whether it is one now.
const lookAgain = time.Second

// Watcher publishes what it sees.
type Watcher struct {
	// State returns the swarm's state, or an error while this node is no manager.
	State func() (*store.Store, error)
	// Publish is *engine.Engine's.
	Publish func(typ events.Type, action events.Action, actor events.Actor)
}

// Run watches until ctx ends. What was there before this node became a manager
// is not news.
func (w *Watcher) Run(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	looked := time.Now()
	for {
		if st, err := w.State(); err == nil {
			w.follow(ctx, st, looked, tick.C)
		}
		looked = time.Now()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow watches one store for as long as it is this node's. What came since is
// news.
func (w *Watcher) follow(ctx context.Context, st *store.Store, since time.Time, tick <-chan time.Time) {
	wake, stop := st.Watch(store.KindService, store.KindNode, store.KindNetwork, store.KindSecret, store.KindConfig)
	defer stop()
	last := before(picture(st.View()), since)
	for {
		now := picture(st.View())
		for _, e := range diff(last, now) {
			w.Publish(e.Type, e.Action, e.Actor)
		}
		last = now
		select {
		case <-wake:
		case <-tick:
			if cur, err := w.State(); err != nil || cur != st {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// before leaves out of a picture what was created at since or later.
func before(p []kinds, since time.Time) []kinds {
	for i := range p {
		p[i].list = slices.DeleteFunc(p[i].list, func(o object) bool { return !o.created.Before(since) })
	}
	return p
}

// object is one thing as its events describe it.
type object struct {
	id, name string
	created  time.Time
	// facts are what an update tells the old and the new of; one that is "" is
	// not told.
	facts map[string]string
	// version changes with what users wrote, which is news even when no fact is.
	version any
}

// kinds are the objects of a swarm, by the type of their events, sorted by id.
type kinds struct {
	typ  events.Type
	list []object
}

// picture is the swarm as events see it.
func picture(v store.View) []kinds {
	all := []kinds{{typ: events.NodeEventType}, {typ: events.NetworkEventType}, {typ: events.SecretEventType},
		{typ: events.ConfigEventType}, {typ: events.ServiceEventType}}
	for _, n := range v.Nodes() {
		all[0].list = append(all[0].list, nodeObject(n))
	}
	for _, n := range v.Networks() {
		all[1].list = append(all[1].list, object{id: n.ID, name: n.Spec.Name, created: n.CreatedAt})
	}
	for _, s := range v.Secrets() {
		all[2].list = append(all[2].list, object{id: s.ID, name: s.Spec.Name, created: s.CreatedAt, version: s.Spec})
	}
	for _, c := range v.Configs() {
		all[3].list = append(all[3].list, object{id: c.ID, name: c.Spec.Name, created: c.CreatedAt, version: c.Spec})
	}
	for _, s := range v.Services() {
		all[4].list = append(all[4].list, serviceObject(s))
	}
	return all
}

func nodeObject(n *cluster.Node) object {
	o := object{id: n.ID, name: n.Spec.Name, created: n.CreatedAt, version: n.Spec, facts: map[string]string{
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
