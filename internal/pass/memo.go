package pass

import (
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Memo spares a plan the services for which it had nothing to do and of which
// nothing has changed since. The store's objects never change in place, so that
// the same pointers are the same facts. A nil Memo spares nothing.
type Memo struct {
	cluster *cluster.Cluster
	nodes   map[string]*cluster.Node
	changed map[string]bool // nodes, since the last pass
	tasks   Changes
	touched map[string]bool // services whose tasks have changed since the last pass
	// walked are the services of the last pass, sorted by id, and spare is memory
	// for those of the next one.
	walked, spare []walked
}

type walked struct {
	svc   *cluster.Service
	quiet bool // there was nothing to do, until again (zero: ever)
	again time.Time
}

// NewMemo returns a memo that knows nothing.
func NewMemo() *Memo {
	return &Memo{nodes: map[string]*cluster.Node{}}
}

// Begin opens a pass. A node (or the cluster object) that has changed matters to
// every service.
func (m *Memo) Begin(v store.View) {
	if m == nil {
		return
	}
	m.changed, m.touched = map[string]bool{}, map[string]bool{}
	changed, gone := m.tasks.Since(v.Tasks())
	for _, t := range changed {
		m.touched[t.ServiceID] = true
	}
	for _, t := range gone {
		m.touched[t.ServiceID] = true
	}
	nodes := v.Nodes()
	for _, n := range nodes {
		if m.nodes[n.ID] != n {
			m.changed[n.ID] = true
		}
	}
	if len(m.changed) > 0 || len(nodes) != len(m.nodes) || v.Cluster() != m.cluster {
		m.nodes = make(map[string]*cluster.Node, len(nodes))
		for _, n := range nodes {
			m.nodes[n.ID] = n
		}
		m.cluster = v.Cluster()
		m.walked = m.walked[:0]
	}
}

// NodeChanged reports whether a node has changed since the last pass.
func (m *Memo) NodeChanged(n *cluster.Node) bool { return m == nil || m.changed[n.ID] }

// DoubtNode lets a node count as changed in the next pass again.
func (m *Memo) DoubtNode(n *cluster.Node) {
	if m != nil {
		m.nodes[n.ID] = nil
	}
}

// Services plans each service of the view but the quiet ones, and returns when to
// look again. plan adds to todo what is to be written for a service, and returns
// when it is to be asked again though nothing changes (zero: never).
func (m *Memo) Services(now time.Time, v store.View, todo *Todo, plan func(*cluster.Service, []*cluster.Task) time.Time) (again time.Time) {
	var last, next []walked
	if m != nil {
		last, next = m.walked, m.spare[:0]
	}
	for _, svc := range v.Services() {
		for len(last) > 0 && last[0].svc != svc && last[0].svc.ID < svc.ID {
			last = last[1:]
		}
		w := walked{svc: svc}
		if len(last) > 0 && m.quiet(now, last[0], svc) {
			w = last[0]
		} else {
			before := len(*todo)
			w.again = plan(svc, v.TasksOf(svc.ID))
			w.quiet = len(*todo) == before
		}
		again = Sooner(again, w.again)
		if m != nil {
			next = append(next, w)
		}
	}
	if m != nil {
		m.walked, m.spare = next, m.walked
	}
	return again
}

// quiet reports whether there is still nothing to do for a service of the last pass.
func (m *Memo) quiet(now time.Time, w walked, svc *cluster.Service) bool {
	return w.quiet && w.svc == svc && !m.touched[svc.ID] && (w.again.IsZero() || now.Before(w.again))
}
