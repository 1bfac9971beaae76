// Package schedule decides on which node a task runs: the filters say where it
// can, the order says where it should, and a task that fits nowhere is told why.
// The leader runs it. It writes a task's node and its state ASSIGNED, the reason
// on those that wait, and the end of those that nobody wants before a node has
// heard of them; nothing else.
package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// What a task is told, in Docker's words.
const (
	assigned  = "scheduler assigned task to node"
	confirmed = "scheduler confirmed task can run on preassigned node"
	waiting   = "pending task scheduling"
	obsolete  = "task was no longer wanted before it had a node"
)

// group is the waiting tasks of one version of a service: all alike.
type group struct {
	of    version
	tasks []*cluster.Task
}

// Plan returns the writes that place what waits. The ledger is brought up to
// date with the view first and then notes what is placed.
func (l *ledger) Plan(now time.Time, v store.View) pass.Todo {
	l.follow(now, v, v.Tasks())
	var todo pass.Todo
	var preassigned []*cluster.Task
	groups := map[version]*group{}
	for _, t := range l.waiting {
		switch {
		case t.Desired > cluster.StateRunning:
			todo.Add(store.SetStatus(t.ID, cluster.Status{State: cluster.StateShutdown, Message: obsolete}))
		case t.Status.State != cluster.StatePending:
		case t.NodeID != "":
			preassigned = append(preassigned, t)
		default:
			of := version{t.ServiceID, t.SpecVersion}
			if groups[of] == nil {
				groups[of] = &group{of: of}
			}
			groups[of].tasks = append(groups[of].tasks, t)
		}
	}
	byAge(preassigned)
	slices.SortFunc(todo, func(a, b []store.Change) int { return strings.Compare(a[0].ID, b[0].ID) })
	p := &planner{ledger: l, v: v, todo: todo, scratch: newScratch(waitingIn(groups))}
	p.todo = slices.Grow(p.todo, p.left)
	l.tentative = slices.Grow(l.tentative, p.left)
	for _, t := range preassigned {
		p.confirm(t)
	}
	for _, g := range inOrder(groups) {
		p.place(g)
	}
	return p.todo
}

func waitingIn(groups map[version]*group) (n int) {
	for _, g := range groups {
		n += len(g.tasks)
	}
	return n
}

// inOrder sorts groups by who waits longest.
func inOrder(groups map[version]*group) []*group {
	out := make([]*group, 0, len(groups))
	for _, g := range groups {
		byAge(g.tasks)
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *group) int {
		return cmp.Or(a.tasks[0].CreatedAt.Compare(b.tasks[0].CreatedAt),
			strings.Compare(a.of.service, b.of.service), cmp.Compare(a.of.version, b.of.version))
	})
	return out
}

func byAge(tasks []*cluster.Task) {
	slices.SortFunc(tasks, func(a, b *cluster.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Slot, b.Slot), strings.Compare(a.ID, b.ID))
	})
}

type planner struct {
	*ledger
	v    store.View
	todo pass.Todo
	scratch
}

// scratch is memory that one pass uses over and over: a pass may place a hundred
// thousand tasks of as many services.
type scratch struct {
	left     int // how many tasks may still be placed
	copies   []cluster.Task
	writes   []store.Change
	assigned cluster.Status
	out      []*host
	seen     []*host
	fits     []*class
	rest     heap[ranked]
}

func newScratch(waiting int) scratch {
	return scratch{
		left: waiting, assigned: cluster.Status{State: cluster.StateAssigned, Message: assigned},
		rest: heap[ranked]{less: better},
	}
}

// assign is the write that gives a task its node.
func (p *planner) assign(t *cluster.Task, h *host) []store.Change {
	if len(p.copies) == 0 {
		n := max(1, min(p.left, 512))
		p.left -= n
		p.copies, p.writes = make([]cluster.Task, n), make([]store.Change, 2*n)
	}
	c, group := &p.copies[0], p.writes[:2:2]
	p.copies, p.writes = p.copies[1:], p.writes[2:]
	*c = *t
	c.NodeID = h.node.ID
	group[0] = store.UpdateTask(c)
	group[1] = store.Change{Op: store.OpStatus, Kind: store.KindTask, ID: t.ID, Status: &p.assigned}
	return group
}

// confirm lets a task go to the node it was made for, if it can run there.
func (p *planner) confirm(t *cluster.Task) {
	if t.ServiceID == "" { // a plain container: it is on its node already
		p.todo.Add(store.SetStatus(t.ID, cluster.Status{State: cluster.StateAssigned, Message: confirmed}))
		return
	}
	h := p.hosts[t.NodeID]
	if h == nil {
		return // services replaces it
	}
	of := version{t.ServiceID, t.SpecVersion}
	n := p.need(of, p.v)
	if why := n.obstacleOn(h, p.running(t.ServiceID, h)); why != none {
		var counts [obstacles]int
		counts[why] = 1
		p.explain(t, explanation(counts))
		return
	}
	p.assume(h, of, n)
	p.todo.Add(store.SetStatus(t.ID, cluster.Status{State: cluster.StateAssigned, Message: confirmed}))
}

// assume counts a task that this pass places.
func (p *planner) assume(h *host, of version, n *need) {
	p.tentative = append(p.tentative, taken{host: h, need: n, of: of, active: true, holds: true})
	p.add(&p.tentative[len(p.tentative)-1])
}

// place finds nodes for a group and tells those left over why there is none.
func (p *planner) place(g *group) {
	n := p.need(g.of, p.v)
	var hosts []*host
	if len(n.spread) > 0 {
		hosts = p.evenly(g.of, n, len(g.tasks))
	} else {
		hosts = p.lightest(g.of, n, len(g.tasks))
	}
	for i, h := range hosts {
		p.todo = append(p.todo, p.assign(g.tasks[i], h))
	}
	left := g.tasks[len(hosts):]
	if len(left) == 0 {
		return
	}
	why := p.whyNot(g.of, n)
	for _, t := range left {
		p.explain(t, why)
	}
}

func (p *planner) explain(t *cluster.Task, why string) {
	if t.Status.Err != why {
		p.todo.Add(store.SetStatus(t.ID, cluster.Status{State: cluster.StatePending, Message: waiting, Err: why}))
	}
}

// lightest places up to count tasks: each on a host with the fewest tasks of the
// service, among those on one with the fewest in all. Hosts without any of the
// service come straight off the classes' heaps, so that a small group does not
// look at every node.
func (p *planner) lightest(of version, n *need, count int) []*host {
	classes := p.fitting(n)
	out, seen, rest := p.out[:0], p.seen[:0], &p.rest // seen: off their heaps for now
	rest.items = rest.items[:0]
	for len(out) < count {
		h := popLightest(classes)
		if h == nil {
			break
		}
		seen = append(seen, h)
		ofService, failures := p.running(of.service, h), p.failures(of, h)
		if ofService > 0 || failures > 0 {
			rest.push(ranked{h, failures, ofService})
			continue
		}
		if n.hostObstacle(h, 0) != none {
			continue
		}
		p.assume(h, of, n)
		out = append(out, h)
		rest.push(ranked{h, 0, 1})
	}
	for len(out) < count && len(rest.items) > 0 {
		r := rest.pop()
		if n.hostObstacle(r.host, r.ofService) != none {
			continue
		}
		p.assume(r.host, of, n)
		out = append(out, r.host)
		r.ofService++
		rest.push(r)
	}
	for _, h := range seen {
		h.class.put(h)
	}
	for _, c := range classes {
		c.stale = false // put kept the heap
	}
	p.out, p.seen = out, seen
	return out
}

// fitting lists the classes that a need allows, their hosts in heap order.
func (p *planner) fitting(n *need) []*class {
	out := p.fits[:0]
	for _, c := range p.classes {
		if n.classObstacle(c) != none {
			continue
		}
		if c.stale {
			h := heap[*host]{items: c.hosts, less: lighter}
			h.init()
			c.stale = false
		}
		out = append(out, c)
	}
	p.fits = out
	return out
}

// popLightest takes the lightest host off the classes' heaps.
func popLightest(classes []*class) *host {
	var best *class
	for _, c := range classes {
		if len(c.hosts) > 0 && (best == nil || lighter(c.hosts[0], best.hosts[0])) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	h := heap[*host]{items: best.hosts, less: lighter}
	top := h.pop()
	best.hosts = h.items
	return top
}

func (c *class) put(x *host) {
	h := heap[*host]{items: c.hosts, less: lighter}
	h.push(x)
	c.hosts = h.items
}

// reasons are what Docker says of an obstacle on one node and on several.
var reasons = [obstacles][2]string{
	unavailable: {"1 node not available for new tasks", "%d nodes not available for new tasks"},
	resources:   {"insufficient resources on 1 node", "insufficient resources on %d nodes"},
	plugin:      {"missing plugin on 1 node", "missing plugin on %d nodes"},
	constraint:  {"scheduling constraints not satisfied on 1 node", "scheduling constraints not satisfied on %d nodes"},
	platform:    {"unsupported platform on 1 node", "unsupported platform on %d nodes"},
	portTaken:   {"host-mode port already in use on 1 node", "host-mode port already in use on %d nodes"},
	replicas:    {"max replicas per node limit exceed", "max replicas per node limit exceed"},
}

// explanation puts the reasons into words, the most frequent first.
func explanation(counts [obstacles]int) string {
	var found []obstacle
	for o := none + 1; o < obstacles; o++ {
		if counts[o] > 0 {
			found = append(found, o)
		}
	}
	slices.SortStableFunc(found, func(a, b obstacle) int { return counts[b] - counts[a] })
	words := make([]string, len(found))
	for i, o := range found {
		words[i] = reasons[o][0]
		if counts[o] > 1 && strings.Contains(reasons[o][1], "%d") {
			words[i] = fmt.Sprintf(reasons[o][1], counts[o])
		}
	}
	return strings.Join(words, "; ")
}

// whyNot says why no node can take a task of the need.
func (p *planner) whyNot(of version, n *need) string {
	var counts [obstacles]int
	for _, h := range p.order {
		counts[n.obstacleOn(h, p.running(of.service, h))]++
	}
	if words := explanation(counts); words != "" {
		return "no suitable node (" + words + ")"
	}
	return "no suitable node"
}
