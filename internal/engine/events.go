package engine

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/filters"
)

// kept is how many events a late listener can still have, and how far a slow
// one may fall behind.
const kept = 256

// bus hands events to listeners. Each reads the ring at its own pace; one that
// falls more than the ring behind misses what was overwritten.
type bus struct {
	mu   sync.Mutex
	ring [kept]events.Message
	next uint64 // number of the next event; event n is at ring[n%kept]
	wake chan struct{}
}

func newBus() *bus { return &bus{wake: make(chan struct{})} }

func (b *bus) publish(m events.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ring[b.next%kept] = m
	b.next++
	close(b.wake)
	b.wake = make(chan struct{})
}

// after returns the events from number n on, the number to go on with, and a
// channel that is closed at the next one.
func (b *bus) after(n uint64) ([]events.Message, uint64, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next > kept && n < b.next-kept {
		n = b.next - kept
	}
	var out []events.Message
	for ; n < b.next; n++ {
		out = append(out, b.ring[n%kept])
	}
	return out, b.next, b.wake
}

// now returns the number of the next event.
func (b *bus) now() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

// Events calls yield for each event from since (zero: now) on, until ctx or
// until (zero: never) ends. Every room that changes something a user can see
// publishes here through Publish.
func (e *Engine) Events(ctx context.Context, since, until time.Time, filters map[string]map[string]bool, yield func(events.Message) error) error {
	var n uint64
	if since.IsZero() {
		n = e.events.now()
	}
	var end <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		end = t.C
	}
	for {
		batch, next, wake := e.events.after(n)
		n = next
		for _, m := range batch {
			if m.TimeNano < since.UnixNano() && !since.IsZero() || !until.IsZero() && m.TimeNano > until.UnixNano() || !eventMatches(m, filters) {
				continue
			}
			if err := yield(m); err != nil {
				return err
			}
		}
		select {
		case <-wake:
		case <-end:
			return nil
		case <-ctx.Done():
			return nil
		case <-e.ctx.Done():
			return nil
		}
	}
}

// Publish records an event of this host and hands it to the listeners.
func (e *Engine) Publish(typ events.Type, action events.Action, actor events.Actor) {
	e.publish("local", typ, action, actor)
}

// PublishSwarm records an event of the swarm and hands it to the listeners.
func (e *Engine) PublishSwarm(typ events.Type, action events.Action, actor events.Actor) {
	e.publish("swarm", typ, action, actor)
}

func (e *Engine) publish(scope string, typ events.Type, action events.Action, actor events.Actor) {
	now := time.Now().UTC()
	e.events.publish(events.Message{Type: typ, Action: action, Actor: actor, Scope: scope, Time: now.Unix(), TimeNano: now.UnixNano()})
}

// emit publishes a container's event with Docker's attributes: its labels, image
// and name, and what is given.
func (e *Engine) emit(rec record, action events.Action, extra map[string]string) {
	attrs := maps.Clone(rec.Config.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs["image"] = rec.ImageName
	attrs["name"] = rec.Name
	maps.Copy(attrs, extra)
	e.Publish(events.ContainerEventType, action, events.Actor{ID: rec.ID, Attributes: attrs})
}

// emitNetwork publishes that a container came to a network or left it.
func (e *Engine) emitNetwork(rec record, action events.Action, id, name string) {
	e.Publish(events.NetworkEventType, action, events.Actor{ID: id, Attributes: map[string]string{
		"container": rec.ID, "name": name, "type": networkDriver(name),
	}})
}

// networkDriver is what Docker shows as a network's type where only its name is known.
func networkDriver(name string) string {
	switch name {
	case "host":
		return "host"
	case "none":
		return "null"
	}
	return "bridge"
}

// eventMatches reports whether m passes Docker's event filters.
func eventMatches(m events.Message, f filters.Filters) bool {
	for key, values := range f {
		if len(values) == 0 {
			continue
		}
		if !eventMatchesKey(m, key, values) {
			return false
		}
	}
	return true
}

func eventMatchesKey(m events.Message, key string, values map[string]bool) bool {
	attrs := m.Actor.Attributes
	switch key {
	case "event":
		// "health_status" and "exec_create" match with what follows the colon too.
		return values[string(m.Action)] || values[strings.SplitN(string(m.Action), ":", 2)[0]]
	case "type":
		return values[string(m.Type)]
	case "scope":
		return values[m.Scope]
	case "daemon":
		return m.Type == events.DaemonEventType && (values[attrs["name"]] || values[m.Actor.ID])
	case "label":
		return filters.HasLabels(attrs, values)
	case "image":
		if m.Type == events.ImageEventType {
			return anyPrefix(values, m.Actor.ID, attrs["name"]) || values[stripTag(m.Actor.ID)] || values[stripTag(attrs["name"])]
		}
		return values[attrs["image"]] || values[stripTag(attrs["image"])]
	case "container", "network", "volume", "plugin", "service", "node", "secret", "config":
		if string(m.Type) != key {
			return false
		}
		return anyPrefix(values, m.Actor.ID, attrs["name"])
	}
	return false
}

// anyPrefix reports whether a value is name, or the beginning of id.
func anyPrefix(values map[string]bool, id, name string) bool {
	for v := range values {
		if v == name || strings.TrimPrefix(v, "/") == name || v != "" && strings.HasPrefix(id, v) {
			return true
		}
	}
	return false
}

func stripTag(ref string) string {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}

func itoa(n int) string { return strconv.Itoa(n) }
