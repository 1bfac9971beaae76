// Package store holds the swarm's replicated state: tables of cluster's objects,
// changed by log entries alone and read through consistent views. It is
// deterministic: the same entries give the same tables on every manager. It
// knows no clock, no randomness and no I/O; raftlog feeds it, everybody on the
// manager side reads it.
package store

import (
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// Kind names a table.
type Kind uint8

// The tables.
const (
	KindCluster Kind = 1
	KindNode    Kind = 2
	KindService Kind = 3
	KindTask    Kind = 4
	KindNetwork Kind = 5
	KindSecret  Kind = 6
	KindConfig  Kind = 7
)

// Op says what a Change does.
type Op uint8

// The operations. A Status change exists for tasks only.
const (
	OpCreate Op = 1
	OpUpdate Op = 2
	OpDelete Op = 3
	OpStatus Op = 4
)

// Change is one write. Expect is the version of the object that the writer read
// (a task's Wants); an update or delete of another version is refused with
// cluster.ErrStale and its whole entry with it. Zero expects nothing.
type Change struct {
	Op      Op
	Kind    Kind
	ID      string
	Expect  uint64
	Cluster *cluster.Cluster
	Node    *cluster.Node
	Service *cluster.Service
	Task    *cluster.Task
	Network *cluster.Network
	Secret  *cluster.Secret
	Config  *cluster.Config
	Status  *cluster.Status
}

// Entry is one log entry: changes that are made together or not at all. At is
// the proposer's time, the only time the store knows.
type Entry struct {
	At      time.Time
	Changes []Change
}

// View is a consistent picture of the store. Objects and lists are shared and must
// not be changed: copy the struct, change the copy. Lists are sorted by id, tasks of a
// service by slot, then node, then creation.
type View interface {
	Index() uint64
	Cluster() *cluster.Cluster // nil before init
	Node(id string) *cluster.Node
	Nodes() []*cluster.Node
	Service(id string) *cluster.Service
	ServiceByName(name string) *cluster.Service
	Services() []*cluster.Service
	// SpecOf returns the spec of a task of the service: the given version,
	// which the store keeps while the service or a task refers to it.
	SpecOf(serviceID string, version uint64) *cluster.ServiceSpecVersion
	Task(id string) *cluster.Task
	Tasks() []*cluster.Task
	TasksOf(serviceID string) []*cluster.Task
	TasksOn(nodeID string) []*cluster.Task
	TasksIn(networkID string) []*cluster.Task
	Network(id string) *cluster.Network
	NetworkByName(name string) *cluster.Network
	Networks() []*cluster.Network
	Secret(id string) *cluster.Secret
	SecretByName(name string) *cluster.Secret
	Secrets() []*cluster.Secret
	Config(id string) *cluster.Config
	ConfigByName(name string) *cluster.Config
	Configs() []*cluster.Config
}

// The constructors below are how writers make changes: an update or delete
// expects the version that its object was read with.

// CreateTask adds a task with its first status.
func CreateTask(t *cluster.Task) Change {
	return Change{Op: OpCreate, Kind: KindTask, ID: t.ID, Task: t}
}

// UpdateTask writes what a loop wants of a task: every field but Status.
func UpdateTask(t *cluster.Task) Change {
	return Change{Op: OpUpdate, Kind: KindTask, ID: t.ID, Expect: t.Wants, Task: t}
}

// SetStatus writes a task's status. One that would go backwards, or is of a
// task that is gone, changes nothing and is no error.
func SetStatus(taskID string, st cluster.Status) Change {
	return Change{Op: OpStatus, Kind: KindTask, ID: taskID, Status: &st}
}

// DeleteTask forgets a task.
func DeleteTask(t *cluster.Task) Change {
	return Change{Op: OpDelete, Kind: KindTask, ID: t.ID, Expect: t.Wants}
}

// CreateService adds a service.
func CreateService(o *cluster.Service) Change {
	return Change{Op: OpCreate, Kind: KindService, ID: o.ID, Service: o}
}

// UpdateService writes a service.
func UpdateService(o *cluster.Service) Change {
	return Change{Op: OpUpdate, Kind: KindService, ID: o.ID, Expect: o.Version, Service: o}
}

// DeleteService removes a service.
func DeleteService(o *cluster.Service) Change {
	return Change{Op: OpDelete, Kind: KindService, ID: o.ID, Expect: o.Version}
}

// CreateNode adds a node.
func CreateNode(o *cluster.Node) Change {
	return Change{Op: OpCreate, Kind: KindNode, ID: o.ID, Node: o}
}

// UpdateNode writes a node.
func UpdateNode(o *cluster.Node) Change {
	return Change{Op: OpUpdate, Kind: KindNode, ID: o.ID, Expect: o.Version, Node: o}
}

// DeleteNode removes a node.
func DeleteNode(o *cluster.Node) Change {
	return Change{Op: OpDelete, Kind: KindNode, ID: o.ID, Expect: o.Version}
}

// CreateNetwork adds a network.
func CreateNetwork(o *cluster.Network) Change {
	return Change{Op: OpCreate, Kind: KindNetwork, ID: o.ID, Network: o}
}

// UpdateNetwork writes a network.
func UpdateNetwork(o *cluster.Network) Change {
	return Change{Op: OpUpdate, Kind: KindNetwork, ID: o.ID, Expect: o.Version, Network: o}
}

// DeleteNetwork removes a network.
func DeleteNetwork(o *cluster.Network) Change {
	return Change{Op: OpDelete, Kind: KindNetwork, ID: o.ID, Expect: o.Version}
}

// CreateSecret adds a secret.
func CreateSecret(o *cluster.Secret) Change {
	return Change{Op: OpCreate, Kind: KindSecret, ID: o.ID, Secret: o}
}

// UpdateSecret writes a secret.
func UpdateSecret(o *cluster.Secret) Change {
	return Change{Op: OpUpdate, Kind: KindSecret, ID: o.ID, Expect: o.Version, Secret: o}
}

// DeleteSecret removes a secret.
func DeleteSecret(o *cluster.Secret) Change {
	return Change{Op: OpDelete, Kind: KindSecret, ID: o.ID, Expect: o.Version}
}

// CreateConfig adds a config.
func CreateConfig(o *cluster.Config) Change {
	return Change{Op: OpCreate, Kind: KindConfig, ID: o.ID, Config: o}
}

// UpdateConfig writes a config.
func UpdateConfig(o *cluster.Config) Change {
	return Change{Op: OpUpdate, Kind: KindConfig, ID: o.ID, Expect: o.Version, Config: o}
}

// DeleteConfig removes a config.
func DeleteConfig(o *cluster.Config) Change {
	return Change{Op: OpDelete, Kind: KindConfig, ID: o.ID, Expect: o.Version}
}

// PutCluster writes the cluster object; the first one makes it.
func PutCluster(o *cluster.Cluster) Change {
	return Change{Op: OpUpdate, Kind: KindCluster, ID: o.ID, Expect: o.Version, Cluster: o}
}
