package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// tx is a transaction: tables that share everything it has not changed with the
// published ones.
type tx struct {
	tables
	gen     uint64
	at      time.Time
	touched kindSet
	refs    map[specRef]*refDelta
}

type specRef struct {
	service string
	version uint64
}

type refDelta struct {
	spec *swarm.ServiceSpec // set when the version is new in this transaction
	n    int
}

func (x *tx) touch(k Kind) { x.touched = x.touched.with(k) }

func (x *tx) apply(changes []Change) error {
	for i := range changes {
		if err := x.change(&changes[i]); err != nil {
			return err
		}
	}
	x.settleSpecs()
	return nil
}

func (x *tx) change(c *Change) error {
	switch c.Kind {
	case KindCluster:
		return x.putCluster(c)
	case KindNode:
		return write(x, &x.nodes, c, c.Node, nodeTable)
	case KindService:
		return write(x, &x.services, c, c.Service, serviceTable)
	case KindTask:
		return x.task(c)
	case KindNetwork:
		return write(x, &x.networks, c, c.Network, networkTable)
	case KindSecret:
		return write(x, &x.secrets, c, c.Secret, secretTable)
	case KindConfig:
		return write(x, &x.configs, c, c.Config, configTable)
	}
	return cluster.Invalidf("a log entry names the unknown table %d", c.Kind)
}

// table says what write needs to know of a kind of object.
type table[T any] struct {
	kind   Kind
	noun   string
	id     func(*T) string
	name   func(*T) string
	meta   func(*T) *cluster.Meta
	taken  string // format of the error for a name that is in use
	settle func(x *tx, old, n *T) error
}

var nodeTable = table[cluster.Node]{
	kind: KindNode, noun: "node", taken: "name conflicts with an existing object: node %s already exists",
	id:   func(o *cluster.Node) string { return o.ID },
	meta: func(o *cluster.Node) *cluster.Meta { return &o.Meta },
	name: func(o *cluster.Node) string {
		if o.Spec == nil {
			return ""
		}
		return o.Spec.Name
	},
	settle: (*tx).settleNode,
}

var serviceTable = table[cluster.Service]{
	kind: KindService, noun: "service", taken: "name conflicts with an existing object: service %s already exists",
	id:   func(o *cluster.Service) string { return o.ID },
	meta: func(o *cluster.Service) *cluster.Meta { return &o.Meta },
	name: func(o *cluster.Service) string {
		if o.Spec == nil {
			return ""
		}
		return o.Spec.Name
	},
	settle: (*tx).settleService,
}

var networkTable = table[cluster.Network]{
	kind: KindNetwork, noun: "network", taken: "network with name %s already exists",
	id:   func(o *cluster.Network) string { return o.ID },
	meta: func(o *cluster.Network) *cluster.Meta { return &o.Meta },
	name: func(o *cluster.Network) string {
		if o.Spec == nil || o.PendingDelete { // its name is free at once
			return ""
		}
		return o.Spec.Name
	},
}

var secretTable = table[cluster.Secret]{
	kind: KindSecret, noun: "secret", taken: "secret %s already exists",
	id:   func(o *cluster.Secret) string { return o.ID },
	meta: func(o *cluster.Secret) *cluster.Meta { return &o.Meta },
	name: func(o *cluster.Secret) string {
		if o.Spec == nil {
			return ""
		}
		return o.Spec.Name
	},
}

var configTable = table[cluster.Config]{
	kind: KindConfig, noun: "config", taken: "config %s already exists",
	id:   func(o *cluster.Config) string { return o.ID },
	meta: func(o *cluster.Config) *cluster.Meta { return &o.Meta },
	name: func(o *cluster.Config) string {
		if o.Spec == nil {
			return ""
		}
		return o.Spec.Name
	},
}

// write makes one change to a table of named objects.
func write[T any](x *tx, tab *objects[T], c *Change, in *T, d table[T]) error {
	old := tab.get(c.ID)
	if c.Op != OpCreate {
		if err := current(c, old != nil, func() uint64 { return d.meta(old).Version }, d.noun); err != nil {
			return err
		}
	}
	if c.Op == OpDelete {
		tab.del(x.gen, c.ID, d.name(old))
		x.touch(d.kind)
		if d.settle != nil {
			return d.settle(x, old, nil)
		}
		return nil
	}
	if c.Op != OpCreate && c.Op != OpUpdate || in == nil || c.ID == "" || d.id(in) != c.ID {
		return cluster.Invalidf("a log entry's change of %s %q is not well formed", d.noun, c.ID)
	}
	if c.Op == OpCreate && old != nil {
		return exists("%s %s already exists", d.noun, c.ID)
	}
	obj := *in // the caller keeps his own
	if name := d.name(&obj); name != "" {
		if other := tab.named(name); other != nil && d.id(other) != c.ID {
			return exists(d.taken, name)
		}
	}
	meta, oldName := d.meta(&obj), ""
	meta.Version, meta.CreatedAt, meta.UpdatedAt = x.index, x.at, x.at
	if old != nil {
		meta.CreatedAt, oldName = d.meta(old).CreatedAt, d.name(old)
	}
	if d.settle != nil {
		if err := d.settle(x, old, &obj); err != nil {
			return err
		}
	}
	tab.put(x.gen, c.ID, oldName, d.name(&obj), &obj)
	x.touch(d.kind)
	return nil
}

// current refuses a change that was made for another version of its object.
func current(c *Change, found bool, version func() uint64, noun string) error {
	switch {
	case found && (c.Expect == 0 || c.Expect == version()):
		return nil
	case found || c.Expect != 0:
		return fmt.Errorf("%s %s: %w", noun, c.ID, cluster.ErrStale)
	default:
		return cluster.NotFoundf("%s %s not found", noun, c.ID)
	}
}

func exists(format string, args ...any) error {
	return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf(format, args...))
}

func (x *tx) putCluster(c *Change) error {
	if c.Op != OpUpdate && c.Op != OpCreate || c.Cluster == nil {
		return cluster.Invalidf("a log entry's change of the cluster is not well formed")
	}
	old, n := x.cluster, *c.Cluster
	if old != nil && c.Expect != 0 && c.Expect != old.Version {
		return fmt.Errorf("cluster: %w", cluster.ErrStale)
	}
	n.Version, n.CreatedAt, n.UpdatedAt = x.index, x.at, x.at
	if old != nil {
		n.CreatedAt = old.CreatedAt
	}
	x.cluster = &n
	x.touch(KindCluster)
	return nil
}

// settleNode numbers the versions of a node's spec and keeps the soft state out
// of the log: a writer that read a node as UNKNOWN does not log it, and a logged
// change of state ends a soft one.
func (x *tx) settleNode(old, n *cluster.Node) error {
	switch {
	case n == nil:
	case old != nil && sameNodeSpec(old.Spec, n.Spec):
		n.SpecVersion = old.SpecVersion
	default:
		n.SpecVersion = x.index
	}
	if old == nil {
		return nil
	}
	h, soft := x.hiddenNodes.bt.Get(hidden[cluster.NodeStatus]{id: old.ID})
	if n == nil {
		if soft {
			x.hiddenNodes.del(x.gen, h)
		}
		return nil
	}
	logged := old.Status
	if soft {
		logged = h.logged
	}
	if n.Status.State == swarm.NodeStateUnknown {
		n.Status = logged
	}
	if !soft {
		return nil
	}
	if n.Status.State != logged.State {
		x.hiddenNodes.del(x.gen, h)
		return nil
	}
	x.hiddenNodes.put(x.gen, hidden[cluster.NodeStatus]{old.ID, n.Status})
	n.Status = old.Status
	return nil
}

func sameNodeSpec(a, b *swarm.NodeSpec) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && a.Role == b.Role && a.Availability == b.Availability && maps.Equal(a.Labels, b.Labels)
}

// settleService numbers the versions of a service's spec and counts who refers
// to them.
func (x *tx) settleService(old, n *cluster.Service) error {
	if n == nil {
		x.ref(old.ID, old.SpecVersion, nil, -1)
		x.ref(old.ID, old.PrevVersion, nil, -1)
		return nil
	}
	if n.Spec == nil {
		return cluster.Invalidf("service %s has no spec", n.ID)
	}
	n.PrevVersion = 0
	switch {
	case old == nil:
		n.SpecVersion = x.index
	case sameSpec(old.Spec, n.Spec):
		n.Spec, n.SpecVersion = old.Spec, old.SpecVersion
	default:
		n.SpecVersion = x.index
	}
	if old != nil && n.Previous != nil {
		switch {
		case n.SpecVersion != old.SpecVersion && sameSpec(old.Spec, n.Previous):
			n.Previous, n.PrevVersion = old.Spec, old.SpecVersion
		case old.PrevVersion != 0 && sameSpec(old.Previous, n.Previous):
			n.Previous, n.PrevVersion = old.Previous, old.PrevVersion
		}
	}
	settleAllocation(old, n)
	x.ref(n.ID, n.SpecVersion, n.Spec, 1)
	x.ref(n.ID, n.PrevVersion, n.Previous, 1)
	if old != nil {
		x.ref(old.ID, old.SpecVersion, nil, -1)
		x.ref(old.ID, old.PrevVersion, nil, -1)
	}
	return nil
}

// sameSpec compares specs as they are logged, so that a nil and an empty list
// do not make a difference before the log that is gone after it.
func sameSpec(a, b *swarm.ServiceSpec) bool {
	if a == b {
		return true
	}
	if a == nil || b == nil {
		return false
	}
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func (x *tx) ref(service string, version uint64, sp *swarm.ServiceSpec, n int) {
	if version == 0 || service == "" {
		return
	}
	if x.refs == nil {
		x.refs = map[specRef]*refDelta{}
	}
	k := specRef{service, version}
	d := x.refs[k]
	if d == nil {
		d = &refDelta{}
		x.refs[k] = d
	}
	d.n += n
	if sp != nil {
		d.spec = sp
	}
}

// settleSpecs keeps the versions somebody refers to and forgets the others.
func (x *tx) settleSpecs() {
	for k, d := range x.refs {
		old, found := x.specs.bt.Get(specKey(k.service, k.version))
		n := specKey(k.service, k.version)
		n.Spec, n.refs = d.spec, d.n
		if found {
			n.Spec, n.refs = old.Spec, old.refs+d.n
		}
		switch {
		case n.refs > 0 && (!found || d.n != 0):
			x.specs.put(x.gen, n)
		case n.refs <= 0 && found:
			x.specs.del(x.gen, n)
		}
	}
	x.refs = nil
}

func (x *tx) hasSpec(service string, version uint64) bool {
	if d := x.refs[specRef{service, version}]; d != nil && d.spec != nil {
		return true
	}
	return x.specs.bt.Has(specKey(service, version))
}

func (x *tx) task(c *Change) error {
	old := x.Task(c.ID)
	if c.Op == OpStatus {
		return x.setStatus(old, c)
	}
	if c.Op == OpCreate {
		return x.createTask(old, c)
	}
	if err := current(c, old != nil, func() uint64 { return old.Wants }, "task"); err != nil {
		return err
	}
	if c.Op == OpDelete {
		x.dropTask(x.gen, old)
		x.ref(old.ServiceID, old.SpecVersion, nil, -1)
		x.hiddenTasks.del(x.gen, hidden[cluster.Status]{id: old.ID})
		x.touch(KindTask)
		return nil
	}
	if c.Op != OpUpdate || c.Task == nil || c.Task.ID != c.ID {
		return cluster.Invalidf("a log entry's change of task %q is not well formed", c.ID)
	}
	n := *c.Task
	n.Status, n.CreatedAt = old.Status, old.CreatedAt
	n.Version, n.Wants, n.UpdatedAt = x.index, x.index, x.at
	if n.ServiceID != old.ServiceID || n.SpecVersion != old.SpecVersion {
		if n.ServiceID != "" && !x.hasSpec(n.ServiceID, n.SpecVersion) {
			return fmt.Errorf("task %s: %w", c.ID, cluster.ErrStale)
		}
		x.ref(n.ServiceID, n.SpecVersion, nil, 1)
		x.ref(old.ServiceID, old.SpecVersion, nil, -1)
	}
	x.putTask(x.gen, old, &n)
	x.touch(KindTask)
	return nil
}

func (x *tx) createTask(old *cluster.Task, c *Change) error {
	if c.Task == nil || c.ID == "" || c.Task.ID != c.ID {
		return cluster.Invalidf("a log entry's change of task %q is not well formed", c.ID)
	}
	if old != nil {
		return exists("task %s already exists", c.ID)
	}
	n := *c.Task
	if n.ServiceID != "" && !x.hasSpec(n.ServiceID, n.SpecVersion) {
		// The service has moved on, or is gone, since the task was planned.
		return fmt.Errorf("task %s: %w", c.ID, cluster.ErrStale)
	}
	n.Version, n.Wants, n.CreatedAt, n.UpdatedAt = x.index, x.index, x.at, x.at
	if n.Status.At.IsZero() {
		n.Status.At = x.at
	}
	x.ref(n.ServiceID, n.SpecVersion, nil, 1)
	x.putTask(x.gen, nil, &n)
	x.touch(KindTask)
	return nil
}

// setStatus logs what is observed of a task. What it does depends on the logged
// status alone, never on the soft one.
func (x *tx) setStatus(old *cluster.Task, c *Change) error {
	if c.Status == nil {
		return cluster.Invalidf("a log entry's status of task %q is not well formed", c.ID)
	}
	if old == nil {
		return nil
	}
	logged := old.Status
	h, soft := x.hiddenTasks.bt.Get(hidden[cluster.Status]{id: old.ID})
	if soft {
		logged = h.logged
	}
	st := old.Final(*c.Status)
	if st.At.IsZero() {
		st.At = x.at
	}
	if !follows(logged, st) {
		return nil
	}
	n := *old
	n.Version, n.UpdatedAt = x.index, x.at
	if soft && later(old.Status, st) {
		x.hiddenTasks.put(x.gen, hidden[cluster.Status]{old.ID, st})
	} else {
		n.Status = st
		if soft {
			x.hiddenTasks.del(x.gen, h)
		}
	}
	x.putTask(x.gen, old, &n)
	x.touch(KindTask)
	return nil
}

// follows reports whether a task observed in a may be observed in b next: a
// state never decreases, a terminal one is final, and no news is no change.
func follows(a, b cluster.Status) bool {
	return b.State >= a.State && !a.State.Terminal() && !reflect.DeepEqual(a, b)
}

// later reports whether the soft status is the one to show beside the logged one.
func later(soft, logged cluster.Status) bool {
	return soft.State > logged.State || soft.State == logged.State && soft.At.After(logged.At)
}

func (x *tx) observe(id string, st cluster.Status) {
	old := x.Task(id)
	if old == nil {
		return
	}
	if st = old.Final(st); !follows(old.Status, st) {
		return
	}
	if !x.hiddenTasks.bt.Has(hidden[cluster.Status]{id: id}) {
		x.hiddenTasks.put(x.gen, hidden[cluster.Status]{id, old.Status})
	}
	n := *old
	n.Status = st
	x.putTask(x.gen, old, &n)
	x.touch(KindTask)
}

func (x *tx) observeNode(id string, st cluster.NodeStatus) {
	old := x.Node(id)
	if old == nil {
		return
	}
	h, soft := x.hiddenNodes.bt.Get(hidden[cluster.NodeStatus]{id: id})
	n := *old
	switch {
	case st == cluster.NodeStatus{}:
		if !soft {
			return
		}
		n.Status = h.logged
		x.hiddenNodes.del(x.gen, h)
	case st == old.Status:
		return
	default:
		if !soft {
			x.hiddenNodes.put(x.gen, hidden[cluster.NodeStatus]{id, old.Status})
		}
		n.Status = st
	}
	x.nodes.put(x.gen, id, nodeTable.name(old), nodeTable.name(&n), &n)
	x.touch(KindNode)
}

// forget shows what is logged wherever something soft is shown.
func (x *tx) forget() {
	x.hiddenTasks.bt.Ascend(func(h hidden[cluster.Status]) bool {
		old := x.Task(h.id)
		n := *old
		n.Status = h.logged
		x.putTask(x.gen, old, &n)
		x.touch(KindTask)
		return true
	})
	x.hiddenNodes.bt.Ascend(func(h hidden[cluster.NodeStatus]) bool {
		old := x.Node(h.id)
		n := *old
		n.Status = h.logged
		x.nodes.put(x.gen, h.id, nodeTable.name(old), nodeTable.name(&n), &n)
		x.touch(KindNode)
		return true
	})
	fresh := newTables()
	x.hiddenTasks, x.hiddenNodes = fresh.hiddenTasks, fresh.hiddenNodes
}
