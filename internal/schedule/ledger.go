package schedule

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// ledger counts what runs where. It follows the store: every pass brings it up
// to date with the objects that changed. What a pass decides is noted as
// tentative until the store shows it.
type ledger struct {
	hosts   map[string]*host
	order   []*host // by id
	classes map[string]*class
	spread  map[string]*spread // of each service
	tasks   map[string]*taken
	waiting map[string]*cluster.Task // those no node has heard of
	changes pass.Changes
	needs   map[version]*need
	// failing holds when tasks of a version failed on a node, oldest first.
	failing   map[version]map[string][]time.Time
	round     uint64
	tentative []taken
}

// version is one version of a service's spec.
type version struct {
	service string
	version uint64
}

// host is a node and what its tasks take of it.
type host struct {
	node     *cluster.Node
	nth      int // its place in the order of ids: the last tie-break
	class    *class
	total    int // active tasks
	cpu, mem int64
	generic  map[string]int64
	ports    map[hostPort]int
	round    uint64
}

// class is a set of nodes that answer alike to every question that does not
// depend on what runs on them or who they are.
type class struct {
	like  *cluster.Node
	hosts []*host // a heap by total, once sorted
	stale bool
}

// taken is what a task takes of its host.
type taken struct {
	task   *cluster.Task
	host   *host
	need   *need
	of     version
	active bool // counts as a task of its service and host
	holds  bool // holds its resources and ports
	failed bool // counted as a failure
}

// spread counts a service's active tasks by host. Most services have few tasks:
// the first host costs no map.
type spread struct {
	first *host
	n     int
	more  map[*host]int
}

func (s *spread) of(h *host) int {
	if s.first == h {
		return s.n
	}
	return s.more[h]
}

// add counts n more on h; it reports whether nothing is left.
func (s *spread) add(h *host, n int) (empty bool) {
	switch {
	case s.first == h || s.first == nil && s.more[h] == 0:
		s.first, s.n = h, s.n+n
		if s.n == 0 {
			s.first = nil
		}
	default:
		if s.more == nil {
			s.more = map[*host]int{}
		}
		if s.more[h] += n; s.more[h] == 0 {
			delete(s.more, h)
		}
	}
	return s.first == nil && len(s.more) == 0
}

// running counts the active tasks of a service on a host.
func (l *ledger) running(service string, h *host) int {
	if s := l.spread[service]; s != nil {
		return s.of(h)
	}
	return 0
}

func newLedger() *ledger {
	return &ledger{
		hosts: map[string]*host{}, classes: map[string]*class{}, spread: map[string]*spread{},
		tasks: map[string]*taken{}, waiting: map[string]*cluster.Task{}, needs: map[version]*need{}, failing: map[version]map[string][]time.Time{},
	}
}

// follow brings the ledger up to date with the store.
func (l *ledger) follow(now time.Time, v store.View, tasks []*cluster.Task) {
	for i := range l.tentative {
		l.drop(&l.tentative[i])
	}
	l.tentative = l.tentative[:0]
	moved := l.followNodes(v)
	changed, gone := l.changes.Since(tasks)
	for _, t := range gone {
		delete(l.waiting, t.ID)
		if k := l.tasks[t.ID]; k != nil {
			l.retake(k, nil, nil, v)
			delete(l.tasks, t.ID)
		}
	}
	for _, t := range changed {
		l.followTask(t, v)
	}
	if moved {
		for _, k := range l.tasks {
			if h := l.hosts[k.task.NodeID]; k.host != h {
				l.retake(k, k.task, h, v)
			}
		}
	}
	for of, n := range l.needs {
		if n.refs == 0 {
			delete(l.needs, of) // of a group that waited and is gone
		}
	}
	l.forgetFailures(now)
}

func (l *ledger) followTask(t *cluster.Task, v store.View) {
	if t.Status.State < cluster.StateAssigned {
		l.waiting[t.ID] = t
	} else {
		delete(l.waiting, t.ID)
	}
	if t.NodeID == "" || t.ServiceID == "" {
		return
	}
	k := l.tasks[t.ID]
	if k == nil {
		k = &taken{}
		l.tasks[t.ID] = k
	}
	l.retake(k, t, l.hosts[t.NodeID], v)
}

// followNodes reports whether a node has come or gone.
func (l *ledger) followNodes(v store.View) (moved bool) {
	l.round++
	added := false
	for _, n := range v.Nodes() {
		h := l.hosts[n.ID]
		if h == nil {
			h = &host{ports: map[hostPort]int{}}
			l.hosts[n.ID] = h
			l.order, added = append(l.order, h), true
		}
		h.round = l.round
		if h.node != n {
			l.describe(h, n)
		}
	}
	gone := func(h *host) bool { return h.round != l.round }
	moved = added || slices.ContainsFunc(l.order, gone)
	if moved {
		for _, h := range l.order {
			if gone(h) {
				h.class.leave(h)
				delete(l.hosts, h.node.ID)
			}
		}
		l.order = slices.DeleteFunc(l.order, gone)
		slices.SortFunc(l.order, func(a, b *host) int { return strings.Compare(a.node.ID, b.node.ID) })
		for i, h := range l.order {
			h.nth = i
			h.class.stale = true
		}
	}
	for sig, c := range l.classes {
		if len(c.hosts) == 0 {
			delete(l.classes, sig)
		}
	}
	return moved
}

// describe takes in what changed of a node: its class and its resources.
func (l *ledger) describe(h *host, n *cluster.Node) {
	if h.node != nil {
		h.resize(h.node, -1)
	}
	h.resize(n, 1)
	h.node = n
	sig := signature(n)
	c := l.classes[sig]
	if c == nil {
		c = &class{like: n}
		l.classes[sig] = c
	}
	if h.class != c {
		if h.class != nil {
			h.class.leave(h)
		}
		h.class = c
		c.hosts, c.stale = append(c.hosts, h), true
	}
}

func (h *host) resize(n *cluster.Node, sign int64) {
	if n.Description == nil {
		return
	}
	r := n.Description.Resources
	h.cpu += sign * r.NanoCPUs
	h.mem += sign * r.MemoryBytes
	for kind, count := range countGeneric(r.GenericResources) {
		h.take(kind, -sign*count)
	}
}

// take lowers what is left of a generic resource.
func (h *host) take(kind string, n int64) {
	if h.generic == nil {
		h.generic = map[string]int64{}
	}
	h.generic[kind] -= n
}

func (h *host) hasRoom(n *need) bool {
	if n.cpu > 0 && n.cpu > h.cpu || n.mem > 0 && n.mem > h.mem {
		return false
	}
	for kind, count := range n.generic {
		if count > h.generic[kind] {
			return false
		}
	}
	return true
}

func (h *host) portsTaken(ports []hostPort) bool {
	return slices.ContainsFunc(ports, func(p hostPort) bool { return h.ports[p] > 0 })
}

func (c *class) leave(h *host) {
	c.hosts = slices.DeleteFunc(c.hosts, func(o *host) bool { return o == h })
	c.stale = true
	if c.like == h.node && len(c.hosts) > 0 {
		c.like = c.hosts[0].node
	}
}

// signature names a node's class.
func signature(n *cluster.Node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%t %s", n.Ready(), n.Role)
	if n.Spec != nil {
		writeLabels(&b, n.Spec.Labels)
	}
	if d := n.Description; d != nil {
		fmt.Fprintf(&b, " %q %q", d.Platform.OS, d.Platform.Architecture)
		writeLabels(&b, d.Engine.Labels)
		for _, p := range d.Engine.Plugins {
			fmt.Fprintf(&b, " %q/%q", p.Type, p.Name)
		}
	}
	return b.String()
}

func writeLabels(b *strings.Builder, labels map[string]string) {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b.WriteString(" {")
	for _, k := range keys {
		fmt.Fprintf(b, "%q=%q,", k, labels[k])
	}
	b.WriteString("}")
}

// retake replaces what a task takes by what it takes as it is now.
func (l *ledger) retake(k *taken, t *cluster.Task, h *host, v store.View) {
	l.drop(k)
	if k.need != nil {
		if k.need.refs--; k.need.refs == 0 {
			delete(l.needs, k.of)
		}
	}
	if t == nil {
		return
	}
	k.task, k.host, k.of = t, h, version{t.ServiceID, t.SpecVersion}
	k.need = l.need(k.of, v)
	k.need.refs++
	st := t.Status.State
	k.holds = h != nil && st >= cluster.StateAssigned && st <= cluster.StateRunning
	k.active = k.holds && t.Desired <= cluster.StateRunning
	if !k.failed && (st == cluster.StateFailed || st == cluster.StateRejected) {
		k.failed = true
		if l.failing[k.of] == nil {
			l.failing[k.of] = map[string][]time.Time{}
		}
		l.failing[k.of][t.NodeID] = append(l.failing[k.of][t.NodeID], t.Status.At)
	}
	l.add(k)
}

func (l *ledger) need(of version, v store.View) *need {
	n := l.needs[of]
	if n == nil {
		var spec *swarm.ServiceSpec
		if sv := v.SpecOf(of.service, of.version); sv != nil {
			spec = sv.Spec
		}
		n = needOf(spec)
		l.needs[of] = n
	}
	return n
}

// add counts what k takes.
func (l *ledger) add(k *taken) {
	if k.active {
		k.host.total++
		k.host.class.stale = true
		s := l.spread[k.of.service]
		if s == nil {
			s = &spread{}
			l.spread[k.of.service] = s
		}
		s.add(k.host, 1)
	}
	if k.holds {
		k.host.hold(k.need, 1)
	}
}

// drop takes back what k takes.
func (l *ledger) drop(k *taken) {
	if k.active {
		k.host.total--
		k.host.class.stale = true
		if s := l.spread[k.of.service]; s.add(k.host, -1) {
			delete(l.spread, k.of.service)
		}
	}
	if k.holds {
		k.host.hold(k.need, -1)
	}
	k.active, k.holds = false, false
}

func (h *host) hold(n *need, sign int) {
	h.cpu -= int64(sign) * n.cpu
	h.mem -= int64(sign) * n.mem
	for kind, count := range n.generic {
		h.take(kind, int64(sign)*count)
	}
	for _, p := range n.ports {
		if h.ports[p] += sign; h.ports[p] == 0 {
			delete(h.ports, p)
		}
	}
}

// A node where tasks of one version failed this often in this time is avoided.
const (
	maxFailures   = 5
	failureWindow = 5 * time.Minute
)

func (l *ledger) forgetFailures(now time.Time) {
	for of, nodes := range l.failing {
		for id, times := range nodes {
			times = slices.DeleteFunc(times, func(t time.Time) bool { return now.Sub(t) > failureWindow })
			nodes[id] = times
			if len(times) == 0 {
				delete(nodes, id)
			}
		}
		if len(nodes) == 0 {
			delete(l.failing, of)
		}
	}
}

// failures counts the recent failures of a version on a host, where there are so
// many that they matter; else 0.
func (l *ledger) failures(of version, h *host) int {
	if n := len(l.failing[of][h.node.ID]); n >= maxFailures {
		return n
	}
	return 0
}
