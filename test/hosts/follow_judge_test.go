package hosts

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// staleAfter is how long an answer may point at a task that is gone.
const staleAfter = time.Second

// span is a piece of time; a zero until has not ended.
type span struct{ from, until time.Time }

func (s span) holds(t time.Time) bool {
	return !t.Before(s.from) && (s.until.IsZero() || t.Before(s.until))
}

// lifespan is what is known of one task.
type lifespan struct {
	id, node string
	addrs    []string // in the overlay network
	// gone is when its process ended; with its host, when the cluster took the
	// host for lost, as nobody can know before. Zero: it lives.
	gone time.Time
	cut  bool
	up   time.Time // when it was first seen to run
}

// answered is one answer of a checker; see checker.Answer for the fields.
type answered struct {
	Asked, Took int64
	Node, Kind  string
	Got         []string
	Err         string
}

func (a answered) at() time.Time { return time.Unix(0, a.Asked) }

// truth is what happened, to judge answers by.
type truth struct {
	tasks map[string]*lifespan
	// deaf are the times in which a node had no session with a leader, by host
	// name: while a new leader is being found and until the node has found it,
	// and from a power cut until the node is ready again. It hears of nothing
	// then, and what ends on it becomes known only afterwards.
	deaf map[string][]span
	vip  string
	done []event // what the test did
}

type event struct {
	at   time.Time
	what string
}

const clock = "15:04:05.000"

// around tells what happened about the time of an answer, for a reader.
func (h *truth) around(a answered) string {
	all := []event{{a.at(), fmt.Sprintf("-> %s asked on %s", a.Kind, a.Node)}}
	add := func(at time.Time, what string, args ...any) {
		if d := at.Sub(a.at()); d > -4*time.Second && d < 2*time.Second {
			all = append(all, event{at, fmt.Sprintf(what, args...)})
		}
	}
	for _, e := range h.done {
		add(e.at, "%s", e.what)
	}
	for _, l := range h.tasks {
		add(l.up, "%s on %s (%v) is seen to run", l.id, l.node, l.addrs)
		add(l.gone, "%s on %s (%v) is gone", l.id, l.node, l.addrs)
	}
	for node, spans := range h.deaf {
		for _, s := range spans {
			add(s.from, "%s hears no leader", node)
			add(s.until, "%s hears a leader", node)
		}
	}
	slices.SortFunc(all, func(a, b event) int { return a.at.Compare(b.at) })
	text := ""
	for _, e := range all {
		text += e.at.Format(clock) + " " + e.what + "\n"
	}
	return text
}

// known returns when the swarm could know that a task was gone.
func (h *truth) known(l *lifespan) (time.Time, bool) {
	if l.gone.IsZero() {
		return time.Time{}, false
	}
	at := l.gone
	if l.cut {
		return at, true
	}
	for _, s := range h.deaf[l.node] {
		if s.holds(at) {
			if s.until.IsZero() {
				return time.Time{}, false
			}
			at = s.until
		}
	}
	return at, true
}

// age returns for how long an answer's node could have known that a task was
// gone when it was asked; negative or false if it could not.
func (h *truth) age(a answered, l *lifespan) (time.Duration, bool) {
	at, ok := h.known(l)
	if !ok {
		return 0, false
	}
	for _, s := range h.deaf[a.Node] {
		if s.holds(a.at()) {
			return 0, false
		}
		if s.from.Before(a.at()) && s.until.After(at) {
			at = s.until
		}
	}
	return a.at().Sub(at), true
}

// judge returns for how long the youngest task was gone that each part of an
// answer can mean, at most over its parts, or what is wrong with it altogether.
func (h *truth) judge(a answered) (worst time.Duration, task, complaint string) {
	for _, got := range a.Got {
		var meant []*lifespan
		switch a.Kind {
		case "name":
			if got != h.vip {
				return 0, "", fmt.Sprintf("the name's address is %s, the service's is %s", got, h.vip)
			}
			continue
		case "tasks":
			for _, l := range h.tasks {
				if slices.Contains(l.addrs, got) {
					meant = append(meant, l)
				}
			}
		default:
			if l := h.tasks[got]; l != nil {
				meant = append(meant, l)
			}
		}
		if len(meant) == 0 {
			return 0, "", got + " was never a task's"
		}
		age, id := time.Duration(1<<62), ""
		for _, l := range meant {
			d, gone := h.age(a, l)
			if !gone {
				age = 0
				break
			}
			if d < age {
				age, id = d, l.id
			}
		}
		if age > worst {
			worst, task = age, id
		}
	}
	return worst, task, ""
}

// dying is how long before its recorded end a process may have closed its sockets.
const dying = 250 * time.Millisecond

// calm reports whether nothing could excuse a connection that fails: since a
// second before it was asked for, no task came or went, or was about to, and its
// node heard the leader all the time.
func (h *truth) calm(a answered) bool {
	from, until := a.at().Add(-staleAfter), a.at().Add(time.Duration(a.Took))
	meets := func(s span) bool { return s.from.Before(until) && (s.until.IsZero() || s.until.After(from)) }
	if slices.ContainsFunc(h.deaf[a.Node], meets) {
		return false
	}
	for _, l := range h.tasks {
		// It runs a little before it listens, and was seen to run a little after.
		if !l.up.IsZero() && meets(span{l.up.Add(-staleAfter), l.up.Add(staleAfter)}) {
			return false
		}
		if l.gone.IsZero() {
			continue
		}
		began := l.gone.Add(-dying)
		for _, s := range h.deaf[l.node] {
			if s.holds(l.gone) { // cut off with its host, at the latest then
				began = s.from
			}
		}
		if at, _ := h.known(l); meets(span{began, at}) {
			return false
		}
	}
	return true
}

// TestJudge: TestFollow's verdicts, on made-up histories.
func TestJudge(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	h := &truth{vip: "10.0.0.2", deaf: map[string][]span{"n2": {{at(4000), at(6000)}}, "n3": {{at(9000), time.Time{}}}},
		tasks: map[string]*lifespan{
			"live":  {id: "live", node: "n1", addrs: []string{"10.0.0.3"}},
			"dead":  {id: "dead", node: "n1", addrs: []string{"10.0.0.4"}, gone: at(1000)},
			"again": {id: "again", node: "n1", addrs: []string{"10.0.0.5"}, gone: at(1000)},
			"heir":  {id: "heir", node: "n2", addrs: []string{"10.0.0.5"}},
			"mute":  {id: "mute", node: "n2", addrs: []string{"10.0.0.6"}, gone: at(4500)},
			"lost":  {id: "lost", node: "n3", addrs: []string{"10.0.0.7"}, gone: at(9500), cut: true},
		}}
	for _, c := range []struct {
		what       string
		node, kind string
		asked      int
		got        string
		stale      bool
		wrong      bool
	}{
		{"a living task", "n1", "tasks", 5000, "10.0.0.3", false, false},
		{"gone for half a second", "n1", "tasks", 1500, "10.0.0.4", false, false},
		{"gone for longer", "n1", "tasks", 2100, "10.0.0.4", true, false},
		{"an address with a new owner", "n1", "tasks", 9000, "10.0.0.5", false, false},
		{"an address nobody had", "n1", "tasks", 1500, "10.0.0.9", false, true},
		{"a task nobody had", "n1", "vip", 1500, "stranger", false, true},
		{"a gone task answers", "n1", "mesh", 2100, "dead", true, false},
		{"asked on a deaf node", "n2", "tasks", 5500, "10.0.0.4", false, false},
		{"asked on a node that just hears again", "n2", "tasks", 6500, "10.0.0.4", false, false},
		{"asked on a node that hears again", "n2", "tasks", 7100, "10.0.0.4", true, false},
		{"ended on a deaf node", "n1", "tasks", 6900, "10.0.0.6", false, false},
		{"ended on a node that was deaf", "n1", "tasks", 7100, "10.0.0.6", true, false},
		{"on a lost host, just noticed", "n1", "tasks", 10400, "10.0.0.7", false, false},
		{"on a lost host, noticed", "n1", "tasks", 10600, "10.0.0.7", true, false},
		{"the service's address", "n1", "name", 1500, "10.0.0.2", false, false},
		{"another address", "n1", "name", 1500, "10.0.0.3", false, true},
	} {
		age, _, complaint := h.judge(answered{Asked: at(c.asked).UnixNano(), Node: c.node, Kind: c.kind, Got: []string{c.got}})
		if stale := age > staleAfter; stale != c.stale || (complaint != "") != c.wrong {
			t.Errorf("%s: stale by %v, %q", c.what, age, complaint)
		}
	}
	for _, c := range []struct {
		what  string
		node  string
		asked int
		calm  bool
	}{
		{"long before", "n1", 500, false}, // took a second: the first tasks end
		{"all quiet", "n1", 2500, true},
		{"on a deaf node", "n2", 4500, false},
		{"something ends on a deaf node", "n1", 5500, false},
		{"a host is down", "n1", 9200, false},
		{"a host was down", "n1", 10600, true},
	} {
		if got := h.calm(answered{Asked: at(c.asked).UnixNano(), Took: int64(time.Second), Node: c.node}); got != c.calm {
			t.Errorf("%s: calm is %v", c.what, got)
		}
	}
}
