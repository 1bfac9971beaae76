package pass

import (
	"slices"
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
	quiet   map[string]*quiet
	changed map[string]bool // nodes, since the last pass
	round   uint64
}

type quiet struct {
	svc   *cluster.Service
	tasks []*cluster.Task
	again time.Time
	round uint64
}

// NewMemo returns a memo that knows nothing.
func NewMemo() *Memo {
	return &Memo{nodes: map[string]*cluster.Node{}, quiet: map[string]*quiet{}}
}

// Begin opens a pass. A node (or the cluster object) that has changed matters to
// every service.
func (m *Memo) Begin(v store.View) {
	if m == nil {
		return
	}
	m.round++
	m.changed = map[string]bool{}
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
		clear(m.quiet)
	}
	for id, q := range m.quiet {
		if q.round < m.round-1 {
			delete(m.quiet, id) // the service is gone
		}
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
	for _, svc := range v.Services() {
		tasks := v.TasksOf(svc.ID)
		at, quiet := m.Quiet(now, svc, tasks)
		if !quiet {
			before := len(*todo)
			if at = plan(svc, tasks); len(*todo) == before {
				m.Remember(svc, tasks, at)
			}
		}
		again = Sooner(again, at)
	}
	return again
}

// Quiet reports whether there is still nothing to do for a service, and when
// there will be.
func (m *Memo) Quiet(now time.Time, svc *cluster.Service, tasks []*cluster.Task) (again time.Time, ok bool) {
	if m == nil {
		return time.Time{}, false
	}
	q := m.quiet[svc.ID]
	if q == nil || q.svc != svc || !slices.Equal(q.tasks, tasks) || !q.again.IsZero() && !now.Before(q.again) {
		return time.Time{}, false
	}
	q.round = m.round
	return q.again, true
}

// Remember notes that there was nothing to do for a service until again.
func (m *Memo) Remember(svc *cluster.Service, tasks []*cluster.Task, again time.Time) {
	if m != nil {
		m.quiet[svc.ID] = &quiet{svc, tasks, again, m.round}
	}
}
