package swarmevents

import (
	"maps"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/events"
)

// diff returns the events that lead from one picture to the next.
func diff(last, now []kinds) []events.Message {
	var out []events.Message
	for i, k := range now {
		out = append(out, diffKind(k.typ, last[i].list, k.list)...)
	}
	return out
}

// diffKind compares two lists, both sorted by id.
func diffKind(typ events.Type, last, now []object) []events.Message {
	var out []events.Message
	add := func(action events.Action, o object, attrs map[string]string) {
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["name"] = o.name
		out = append(out, events.Message{Type: typ, Action: action, Actor: events.Actor{ID: o.id, Attributes: attrs}})
	}
	i, j := 0, 0
	for i < len(last) || j < len(now) {
		switch {
		case j == len(now) || i < len(last) && last[i].id < now[j].id:
			add(events.ActionRemove, last[i], nil)
			i++
		case i == len(last) || now[j].id < last[i].id:
			add(events.ActionCreate, now[j], nil)
			j++
		default:
			if attrs, changed := changes(last[i], now[j]); changed {
				add(events.ActionUpdate, now[j], attrs)
			}
			i++
			j++
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
	return attrs, len(attrs) > 0 || last.version != now.version || last.name != now.name
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }
