package control

import (
	"context"
	"math"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

// longest bounds every span of time users give: longer ones overflow somewhere.
const longest = 10 * 365 * 24 * time.Hour

// UpdateFlags say what is renewed along with the swarm's spec.
type UpdateFlags struct{ RotateWorkerToken, RotateManagerToken, RotateUnlockKey bool }

type updateSwarm struct {
	Version uint64
	Spec    swarm.Spec
	Flags   UpdateFlags
}

func (a *API) clusterMethods() {
	method(a, "swarm", a.swarm)
	method(a, "swarm.update", a.updateSwarm)
}

// Swarm returns the swarm as an object.
func (a *API) Swarm(ctx context.Context) (swarm.Swarm, error) {
	return read(ctx, a, "swarm", none{}, a.swarm)
}

// Seen returns the swarm as this manager last saw it. It waits for nobody.
func (a *API) Seen(ctx context.Context) (swarm.Swarm, error) { return a.swarm(ctx, none{}) }

func (a *API) swarm(context.Context, none) (swarm.Swarm, error) {
	c := a.Store.View().Cluster()
	if c == nil {
		return swarm.Swarm{}, noCluster()
	}
	return clusterAPI(c), nil
}

func noCluster() error {
	return cluster.Unavailablef("this manager does not have the swarm's state yet")
}

// UnlockKey returns the key that unlocks managers, "" while they are not locked.
func (a *API) UnlockKey(context.Context) (string, error) { return "", nil }

// Counts returns how many nodes the swarm has, and how many of them are managers,
// as this manager knows it.
func (a *API) Counts() (nodes, managers int) {
	for _, n := range a.Store.View().Nodes() {
		nodes++
		if n.Spec.Role == swarm.NodeRoleManager {
			managers++
		}
	}
	return nodes, managers
}

// UpdateSwarm writes the swarm's spec, merged into the one it has as Docker does,
// and rotates what flags say.
func (a *API) UpdateSwarm(ctx context.Context, version uint64, spec swarm.Spec, flags UpdateFlags) error {
	_, err := write(ctx, a, "swarm.update", updateSwarm{version, spec, flags}, a.updateSwarm)
	return err
}

func (a *API) updateSwarm(ctx context.Context, r updateSwarm) (none, error) {
	c := a.Store.View().Cluster()
	if c == nil {
		return none{}, noCluster()
	}
	if r.Version != c.Version {
		return none{}, outOfSequence()
	}
	n := *c
	merged := mergeSpec(*c.Spec, r.Spec)
	if err := checkSpec(merged); err != nil {
		return none{}, err
	}
	if merged.Name != c.Spec.Name {
		return none{}, invalid("modification of cluster name is not allowed")
	}
	n.Spec = &merged
	if r.Flags.RotateWorkerToken || r.Flags.RotateManagerToken {
		root, err := pki.ParseRoot(c.RootCA.Cert, c.RootCA.Key)
		if err != nil {
			return none{}, err
		}
		if r.Flags.RotateWorkerToken {
			n.RootCA.WorkerToken = pki.NewToken(root)
		}
		if r.Flags.RotateManagerToken {
			n.RootCA.ManagerToken = pki.NewToken(root)
		}
	}
	return none{}, a.propose(ctx, store.PutCluster(&n))
}

// DefaultSpec returns the spec of a swarm whose user asks for nothing.
func DefaultSpec() swarm.Spec {
	history, old := int64(5), uint64(0)
	return swarm.Spec{
		Annotations:   swarm.Annotations{Name: "default", Labels: map[string]string{}},
		Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: &history},
		Raft: swarm.RaftConfig{
			SnapshotInterval: 10000, KeepOldSnapshots: &old, LogEntriesForSlowFollowers: 500,
			ElectionTick: 10, HeartbeatTick: 1,
		},
		Dispatcher: swarm.DispatcherConfig{HeartbeatPeriod: 5 * time.Second},
		CAConfig:   swarm.CAConfig{NodeCertExpiry: 90 * 24 * time.Hour},
	}
}

// mergeSpec returns cur with what is set in by.
func mergeSpec(cur, by swarm.Spec) swarm.Spec {
	m := cur
	if by.Name != "" {
		m.Name = by.Name
	}
	if len(by.Labels) > 0 {
		m.Labels = by.Labels
	}
	if by.Orchestration.TaskHistoryRetentionLimit != nil {
		m.Orchestration = by.Orchestration
	}
	if by.Raft.SnapshotInterval != 0 {
		m.Raft.SnapshotInterval = by.Raft.SnapshotInterval
	}
	if by.Raft.KeepOldSnapshots != nil {
		m.Raft.KeepOldSnapshots = by.Raft.KeepOldSnapshots
	}
	if by.Raft.LogEntriesForSlowFollowers != 0 {
		m.Raft.LogEntriesForSlowFollowers = by.Raft.LogEntriesForSlowFollowers
	}
	if by.Raft.ElectionTick != 0 {
		m.Raft.ElectionTick = by.Raft.ElectionTick
	}
	if by.Raft.HeartbeatTick != 0 {
		m.Raft.HeartbeatTick = by.Raft.HeartbeatTick
	}
	if by.Dispatcher.HeartbeatPeriod != 0 {
		m.Dispatcher = by.Dispatcher
	}
	if by.CAConfig.NodeCertExpiry != 0 {
		m.CAConfig.NodeCertExpiry = by.CAConfig.NodeCertExpiry
	}
	if len(by.CAConfig.ExternalCAs) > 0 {
		m.CAConfig.ExternalCAs = by.CAConfig.ExternalCAs
	}
	m.CAConfig.SigningCACert, m.CAConfig.SigningCAKey = by.CAConfig.SigningCACert, by.CAConfig.SigningCAKey
	if by.CAConfig.ForceRotate != 0 {
		m.CAConfig.ForceRotate = by.CAConfig.ForceRotate
	}
	if by.TaskDefaults.LogDriver != nil {
		m.TaskDefaults = by.TaskDefaults
	}
	m.EncryptionConfig = by.EncryptionConfig
	return m
}

// checkSpec validates a swarm's spec.
func checkSpec(s swarm.Spec) error {
	switch {
	case s.Dispatcher.HeartbeatPeriod < 0:
		return invalid("heartbeat time period cannot be a negative duration")
	case s.Dispatcher.HeartbeatPeriod > time.Hour:
		return invalid("heartbeat time period cannot be longer than 1h")
	case s.CAConfig.NodeCertExpiry < pki.MinValidity:
		return invalid("minimum certificate expiry time is: %v", pki.MinValidity)
	case s.CAConfig.NodeCertExpiry > longest:
		return invalid("maximum certificate expiry time is: %v", longest)
	case s.Raft.ElectionTick <= s.Raft.HeartbeatTick:
		return invalid("invalid election tick %d: it must be larger than the heartbeat tick (%d)", s.Raft.ElectionTick, s.Raft.HeartbeatTick)
	case s.Raft.SnapshotInterval > math.MaxInt32 || s.Raft.LogEntriesForSlowFollowers > math.MaxInt32:
		return invalid("the log entries between snapshots and those kept for slow followers cannot be more than %d", math.MaxInt32)
	case s.Raft.KeepOldSnapshots != nil && *s.Raft.KeepOldSnapshots > 1000:
		return invalid("no more than 1000 old snapshots can be kept, got %d", *s.Raft.KeepOldSnapshots)
	}
	return unbuiltInSwarm(s)
}

// Founding is what a new swarm starts from.
type Founding struct {
	ClusterID    string
	NodeID       string // of the first manager
	Addr         string // where other managers reach it, host:port
	Availability swarm.NodeAvailability
	Description  *swarm.NodeDescription // may be nil; the node's session fills it in
	Spec         swarm.Spec             // what the user asked for; see DefaultSpec for the rest
	RootCA       cluster.RootCA
	Request      swarm.InitRequest // for address pool, subnet size and data path port
}

// Bootstrap returns the first entry of a new swarm: the cluster, its first node
// and the networks every swarm has.
func Bootstrap(f Founding) ([]store.Change, error) {
	spec := mergeSpec(DefaultSpec(), f.Spec)
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	c := &cluster.Cluster{
		ID: f.ClusterID, Spec: &spec, RootCA: f.RootCA,
		DefaultAddrPool: f.Request.DefaultAddrPool, SubnetSize: f.Request.SubnetSize, DataPathPort: f.Request.DataPathPort,
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = 24
	}
	if c.DataPathPort == 0 {
		c.DataPathPort = cluster.DefaultDataPort
	}
	if err := checkPools(c); err != nil {
		return nil, err
	}
	avail, err := cluster.ParseAvailability(f.Availability)
	if err != nil {
		return nil, err
	}
	node := &cluster.Node{
		ID:          f.NodeID,
		Spec:        &swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{}}, Role: swarm.NodeRoleManager, Availability: avail},
		Role:        swarm.NodeRoleManager,
		Description: f.Description,
		Manager:     &cluster.Manager{RaftID: f.NodeID, Addr: f.Addr},
		Status:      cluster.NodeStatus{State: swarm.NodeStateUnknown},
	}
	return []store.Change{
		store.PutCluster(c), store.CreateNode(node),
		store.CreateNetwork(swarmNetwork("ingress", "overlay", true)),
		store.CreateNetwork(swarmNetwork("bridge", "bridge", false)),
		store.CreateNetwork(swarmNetwork("host", "host", false)),
	}, nil
}

// checkPools validates the address pools of a new swarm.
func checkPools(c *cluster.Cluster) error {
	if c.DataPathPort < 1024 || c.DataPathPort > 49151 {
		return cluster.Invalidf("Error: invalid data path port %d, it must be between 1024 and 49151", c.DataPathPort)
	}
	if c.SubnetSize > 29 {
		return cluster.Invalidf("invalid default address pool: subnet size must be less than 30, got %d", c.SubnetSize)
	}
	if len(c.DefaultAddrPool) > 64 {
		return cluster.Invalidf("invalid default address pool: %d pools are too many", len(c.DefaultAddrPool))
	}
	for i, p := range c.DefaultAddrPool {
		if !p.IsValid() || !p.Addr().Is4() {
			return cluster.Invalidf("invalid default address pool: %s is no IPv4 network", p)
		}
		if uint32(p.Bits()) > c.SubnetSize {
			return cluster.Invalidf("invalid CIDR: %q. Subnet size is too small for pool: %d", p.String(), c.SubnetSize)
		}
		for _, q := range c.DefaultAddrPool[:i] {
			if p.Overlaps(q) {
				return cluster.Invalidf("invalid default address pool: %s and %s overlap", q, p)
			}
		}
	}
	return nil
}

// ForceNewCluster returns the changes that leave one manager alone in charge of
// a state that other managers were part of.
func ForceNewCluster(v store.View, nodeID, addr string) []store.Change {
	var out []store.Change
	for _, old := range v.Nodes() {
		n := *old
		switch {
		case n.ID == nodeID:
			n.Manager = &cluster.Manager{RaftID: n.ID, Addr: addr}
		case n.Manager != nil || n.Spec.Role == swarm.NodeRoleManager:
			spec := *n.Spec
			spec.Role = swarm.NodeRoleWorker
			n.Spec, n.Manager = &spec, nil
		default:
			continue
		}
		out = append(out, store.UpdateNode(&n))
	}
	return out
}
