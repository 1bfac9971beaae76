package store

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"github.com/google/btree"

	"github.com/skep-dev/skep/internal/cluster"
)

// degree is the B-trees' branching: measured best for path copies of tables of
// 10k to 1M objects.
const degree = 16

// index is a copy-on-write B-tree. gen is the transaction that may change it in
// place; any other one clones it first, so a published tree never changes.
type index[T any] struct {
	bt  *btree.BTreeG[T]
	gen uint64
}

func newIndex[T any](less btree.LessFunc[T]) index[T] {
	return index[T]{bt: btree.NewG(degree, less)}
}

func (x *index[T]) own(gen uint64) {
	if x.gen != gen {
		x.bt, x.gen = x.bt.Clone(), gen
	}
}

func (x *index[T]) put(gen uint64, v T) { x.own(gen); x.bt.ReplaceOrInsert(v) }
func (x *index[T]) del(gen uint64, v T) { x.own(gen); x.bt.Delete(v) }

// keyed is an object under its id or name.
type keyed[T any] struct {
	key string
	obj *T
}

// objects is a table whose objects have an id and perhaps a unique name.
type objects[T any] struct {
	byID, byName index[keyed[T]]
	all          *listing[T]
}

// listing is a table as a list, made for the first reader and shared with the
// others: most tables stay the same from one view to the next.
type listing[T any] struct {
	once sync.Once
	list []*T
}

func (l *listing[T]) of(size int, each func(add func(*T))) []*T {
	l.once.Do(func() {
		out := make([]*T, 0, size)
		each(func(o *T) { out = append(out, o) })
		l.list = slices.Clip(out)
	})
	return l.list
}

func newObjects[T any]() objects[T] {
	less := func(a, b keyed[T]) bool { return a.key < b.key }
	return objects[T]{newIndex(less), newIndex(less), &listing[T]{}}
}

func (o *objects[T]) get(id string) *T {
	k, _ := o.byID.bt.Get(keyed[T]{key: id})
	return k.obj
}

func (o *objects[T]) named(name string) *T {
	if name == "" {
		return nil
	}
	k, _ := o.byName.bt.Get(keyed[T]{key: name})
	return k.obj
}

func (o *objects[T]) put(gen uint64, id, oldName, name string, obj *T) {
	o.all = &listing[T]{}
	o.byID.put(gen, keyed[T]{id, obj})
	if oldName != "" && oldName != name {
		o.byName.del(gen, keyed[T]{key: oldName})
	}
	if name != "" {
		o.byName.put(gen, keyed[T]{name, obj})
	}
}

func (o *objects[T]) del(gen uint64, id, name string) {
	o.all = &listing[T]{}
	o.byID.del(gen, keyed[T]{key: id})
	if name != "" {
		o.byName.del(gen, keyed[T]{key: name})
	}
}

func (o *objects[T]) list() []*T {
	return o.all.of(o.byID.bt.Len(), func(add func(*T)) {
		o.byID.bt.Ascend(func(k keyed[T]) bool { add(k.obj); return true })
	})
}

// spec is a kept version of a service's spec and how many objects refer to it.
type spec struct {
	cluster.ServiceSpecVersion
	refs int
}

// inNet is a task under one of its networks.
type inNet struct {
	net  string
	task *cluster.Task
}

// hidden is what the log says of a task or node whose soft status is shown.
type hidden[T any] struct {
	id     string
	logged T
}

// tables is one state of the store. A published one is never changed; it is
// what a View reads.
type tables struct {
	index    uint64
	cluster  *cluster.Cluster
	nodes    objects[cluster.Node]
	services objects[cluster.Service]
	networks objects[cluster.Network]
	secrets  objects[cluster.Secret]
	configs  objects[cluster.Config]
	specs    index[*spec]

	tasks     index[*cluster.Task] // by id
	allTasks  *listing[cluster.Task]
	byService index[*cluster.Task] // by service, slot, node, creation
	byNode    index[*cluster.Task]
	byNet     index[inNet]

	// The tasks and nodes above show soft statuses; these keep the logged ones.
	hiddenTasks index[hidden[cluster.Status]]
	hiddenNodes index[hidden[cluster.NodeStatus]]
}

func newTables() *tables {
	return &tables{
		nodes:       newObjects[cluster.Node](),
		services:    newObjects[cluster.Service](),
		networks:    newObjects[cluster.Network](),
		secrets:     newObjects[cluster.Secret](),
		configs:     newObjects[cluster.Config](),
		specs:       newIndex(lessSpec),
		tasks:       newIndex(func(a, b *cluster.Task) bool { return a.ID < b.ID }),
		allTasks:    &listing[cluster.Task]{},
		byService:   newIndex(lessInService),
		byNode:      newIndex(lessOnNode),
		byNet:       newIndex(lessInNet),
		hiddenTasks: newIndex(func(a, b hidden[cluster.Status]) bool { return a.id < b.id }),
		hiddenNodes: newIndex(func(a, b hidden[cluster.NodeStatus]) bool { return a.id < b.id }),
	}
}

func lessSpec(a, b *spec) bool {
	return cmp.Or(strings.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Version, b.Version)) < 0
}

func lessInService(a, b *cluster.Task) bool {
	if a.ServiceID != b.ServiceID {
		return a.ServiceID < b.ServiceID
	}
	if a.Slot != b.Slot {
		return a.Slot < b.Slot
	}

	if a.NodeID != b.NodeID {
		return a.NodeID < b.NodeID
	}
	if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
		return c < 0
	}
	return a.ID < b.ID
}

func lessOnNode(a, b *cluster.Task) bool {
	if a.NodeID != b.NodeID {
		return a.NodeID < b.NodeID
	}
	return a.ID < b.ID
}

func lessInNet(a, b inNet) bool {
	if a.net != b.net {
		return a.net < b.net
	}
	return a.task.ID < b.task.ID
}

// networksOf lists the networks a task is found under.
func networksOf(t *cluster.Task) []string {
	if t.Attach == nil && len(t.Networks) == 0 {
		return nil
	}
	ids := make([]string, 0, len(t.Networks)+1)
	for i := range t.Networks {
		ids = append(ids, t.Networks[i].NetworkID)
	}
	if t.Attach != nil {
		ids = append(ids, t.Attach.NetworkID)
	}
	return ids
}

// putTask replaces old (nil for a new task) by t in every index.
func (t *tables) putTask(gen uint64, old, n *cluster.Task) {
	t.allTasks = &listing[cluster.Task]{}
	if old != nil && (old.ServiceID != n.ServiceID || old.Slot != n.Slot || old.NodeID != n.NodeID) {
		t.dropTask(gen, old)
	} else if old != nil && !sameNetworks(old, n) {
		for _, id := range networksOf(old) {
			t.byNet.del(gen, inNet{id, old})
		}
	}
	t.tasks.put(gen, n)
	t.byService.put(gen, n)
	if n.NodeID != "" {
		t.byNode.put(gen, n)
	}
	for _, id := range networksOf(n) {
		t.byNet.put(gen, inNet{id, n})
	}
}

func (t *tables) dropTask(gen uint64, old *cluster.Task) {
	t.allTasks = &listing[cluster.Task]{}
	t.tasks.del(gen, old)
	t.byService.del(gen, old)
	if old.NodeID != "" {
		t.byNode.del(gen, old)
	}
	for _, id := range networksOf(old) {
		t.byNet.del(gen, inNet{id, old})
	}
}

func sameNetworks(a, b *cluster.Task) bool {
	if len(a.Networks) != len(b.Networks) || (a.Attach == nil) != (b.Attach == nil) {
		return false
	}
	for i := range a.Networks {
		if a.Networks[i].NetworkID != b.Networks[i].NetworkID {
			return false
		}
	}
	return a.Attach == nil || a.Attach.NetworkID == b.Attach.NetworkID
}

// The methods below make *tables a View.

func (t *tables) Index() uint64                      { return t.index }
func (t *tables) Cluster() *cluster.Cluster          { return t.cluster }
func (t *tables) Node(id string) *cluster.Node       { return t.nodes.get(id) }
func (t *tables) Nodes() []*cluster.Node             { return t.nodes.list() }
func (t *tables) Service(id string) *cluster.Service { return t.services.get(id) }
func (t *tables) ServiceByName(name string) *cluster.Service {
	return t.services.named(name)
}
func (t *tables) Services() []*cluster.Service       { return t.services.list() }
func (t *tables) Network(id string) *cluster.Network { return t.networks.get(id) }
func (t *tables) NetworkByName(name string) *cluster.Network {
	return t.networks.named(name)
}
func (t *tables) Networks() []*cluster.Network             { return t.networks.list() }
func (t *tables) Secret(id string) *cluster.Secret         { return t.secrets.get(id) }
func (t *tables) SecretByName(name string) *cluster.Secret { return t.secrets.named(name) }
func (t *tables) Secrets() []*cluster.Secret               { return t.secrets.list() }
func (t *tables) Config(id string) *cluster.Config         { return t.configs.get(id) }
func (t *tables) ConfigByName(name string) *cluster.Config { return t.configs.named(name) }
func (t *tables) Configs() []*cluster.Config               { return t.configs.list() }

func (t *tables) SpecOf(serviceID string, version uint64) *cluster.ServiceSpecVersion {
	sp, ok := t.specs.bt.Get(specKey(serviceID, version))
	if !ok {
		return nil
	}
	return &sp.ServiceSpecVersion
}

func specKey(serviceID string, version uint64) *spec {
	return &spec{ServiceSpecVersion: cluster.ServiceSpecVersion{ServiceID: serviceID, Version: version}}
}

func (t *tables) Task(id string) *cluster.Task {
	task, _ := t.tasks.bt.Get(&cluster.Task{ID: id})
	return task
}

func (t *tables) Tasks() []*cluster.Task {
	return t.allTasks.of(t.tasks.bt.Len(), func(add func(*cluster.Task)) {
		t.tasks.bt.Ascend(func(o *cluster.Task) bool { add(o); return true })
	})
}

func (t *tables) TasksOf(serviceID string) []*cluster.Task {
	var out []*cluster.Task
	t.byService.bt.AscendGreaterOrEqual(&cluster.Task{ServiceID: serviceID, Slot: -1}, func(o *cluster.Task) bool {
		if o.ServiceID != serviceID {
			return false
		}
		out = append(out, o)
		return true
	})
	return out
}

func (t *tables) TasksOn(nodeID string) []*cluster.Task {
	var out []*cluster.Task
	t.byNode.bt.AscendGreaterOrEqual(&cluster.Task{NodeID: nodeID}, func(o *cluster.Task) bool {
		if o.NodeID != nodeID {
			return false
		}
		out = append(out, o)
		return true
	})
	return out
}

func (t *tables) TasksIn(networkID string) []*cluster.Task {
	var out []*cluster.Task
	t.byNet.bt.AscendGreaterOrEqual(inNet{networkID, &cluster.Task{}}, func(o inNet) bool {
		if o.net != networkID {
			return false
		}
		out = append(out, o.task)
		return true
	})
	return out
}
