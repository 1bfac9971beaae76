package swarmevents

import (
	"maps"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/events"
)

// diff returns the events that lead from one picture to the next.
func diff(last, now picture) []events.Message {
	return slices.Concat(
		diffKind(events.NodeEventType, last.nodes, now.nodes, nodeObject),
		diffKind(events.NetworkEventType, last.networks, now.networks, networkObject),
		diffKind(events.SecretEventType, last.secrets, now.secrets, secretObject),
		diffKind(events.ConfigEventType, last.configs, now.configs, configObject),
		diffKind(events.ServiceEventType, last.services, now.services, serviceObject))
}

// diffKind compares two lists, both sorted by id. It describes only what is not
// the same: it runs after every write of the swarm.
func diffKind[T any](typ events.Type, last, now []*T, describe func(*T) object) []events.Message {
	if len(last) == len(now) && (len(now) == 0 || &last[0] == &now[0]) {
		return nil // the store gave out the same list
	}
	var out []events.Message
	add := func(action events.Action, o object, attrs map[string]string) {
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["name"] = o.name
		out = append(out, events.Message{Type: typ, Action: action, Actor: events.Actor{ID: o.id, Attributes: attrs}})
	}
	for len(last) > 0 || len(now) > 0 {
		var was, is object
		if len(last) > 0 && len(now) > 0 && last[0] == now[0] {
			last, now = last[1:], now[1:]
			continue
		}
		if len(last) > 0 {
			was = describe(last[0])
		}
		if len(now) > 0 {
			is = describe(now[0])
		}
		switch {
		case len(now) == 0 || len(last) > 0 && was.id < is.id:
			add(events.ActionRemove, was, nil)
			last = last[1:]
		case len(last) == 0 || is.id < was.id:
			add(events.ActionCreate, is, nil)
			if is.settled {
				add(events.ActionUpdate, is, nil)
			}
			now = now[1:]
		default:
			if attrs, changed := changes(was, is); changed {
				add(events.ActionUpdate, is, attrs)
			}
			last, now = last[1:], now[1:]
		}
	}
	return out
}

// changes tells what of an object is new and what it was.
func changes(last, now object) (attrs map[string]string, changed bool) {
	attrs = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(now.facts)) {
		was, is := last.facts[key], now.facts[key]
		if was == is || is == "" {
			continue
		}
		attrs[key+".new"] = is
		if was != "" {
			attrs[key+".old"] = was
		}
	}
	return attrs, len(attrs) > 0 || last.version != now.version || last.settled != now.settled || last.name != now.name
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
