package cluster

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Meta is what the store keeps about every object. Version is the log index of
// the object's last write: the Engine API's Version.Index.
type Meta struct {
	Version   uint64
	CreatedAt time.Time
	UpdatedAt time.Time
}

// API returns m in the Engine API's shape.
func (m Meta) API() swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: m.Version}, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
}

// Cluster is the one object that describes the swarm itself.
type Cluster struct {
	ID string
	Meta
	Spec            *swarm.Spec
	RootCA          RootCA
	DefaultAddrPool []netip.Prefix
	SubnetSize      uint32
	DataPathPort    uint32
	// RemovedNodes maps the id of a removed node to when its certificate ends;
	// until then a peer that shows it is refused.
	RemovedNodes map[string]time.Time
}

// RootCA is the swarm's root of trust. Cert and Key are PEM.
type RootCA struct {
	Cert         []byte
	Key          []byte
	WorkerToken  string // the whole SWMTKN-1-… token
	ManagerToken string
}

// Node is a host that was admitted to the swarm. Users write Spec; the leader
// writes the rest from what the node reports.
type Node struct {
	ID string
	Meta
	Spec *swarm.NodeSpec
	// SpecVersion is the version of the node in which Spec was written; the store
	// sets it.
	SpecVersion uint64
	Description *swarm.NodeDescription
	// Role is the role the node's certificate gives it; Spec.Role is the wanted one.
	Role swarm.NodeRole
	// Manager is set for a member of the Raft group.
	Manager *Manager
	Status  NodeStatus
	// DataAddr is where the node receives overlay traffic (its VTEP).
	DataAddr netip.Addr
	// Addrs holds the node's own address in each network that gives it one
	// (the ingress network), by network id. The allocator writes it.
	Addrs map[string]netip.Addr
}

// Manager is what is known of a node as a member of the Raft group. Leadership
// and reachability are observed, never stored.
type Manager struct {
	RaftID string
	Addr   string // host:port
}

// NodeStatus is the last logged opinion of a node: only going down and coming
// back are logged, heartbeats never. Unknown is never logged: see dispatch.
type NodeStatus struct {
	State   swarm.NodeState
	Message string
	Addr    string // the address the node's session comes from
	Since   time.Time
}

// Service is what a user asked for. Users write Spec and Previous through
// control; allocate writes Ports and VIPs; rollout writes Update.
type Service struct {
	ID string
	Meta
	Spec        *swarm.ServiceSpec
	SpecVersion uint64 // Version of the write that set Spec
	Previous    *swarm.ServiceSpec
	PrevVersion uint64
	// RegistryAuth is what nodes show the registry for Spec's image, as the API's
	// header has it; PreviousAuth is the one for Previous.
	RegistryAuth string
	PreviousAuth string
	Ports        []swarm.PortConfig // Spec's ports with the published ones filled in
	VIPs         []VIP
	// Allocated is the SpecVersion that Ports and VIPs were last made for. Tasks
	// are created only once it equals SpecVersion. The store sets it at once where
	// they need no change.
	Allocated uint64
	// AllocErr says why Ports and VIPs could not be made for SpecVersion.
	AllocErr string
	Update   *swarm.UpdateStatus
	// JobIteration and JobStarted are set for jobs.
	JobIteration uint64
	JobStarted   time.Time
}

// AuthOf returns what nodes show the registry for the image of a version of the
// service's spec; "" for nothing.
func (s *Service) AuthOf(specVersion uint64) string {
	switch specVersion {
	case s.SpecVersion:
		return s.RegistryAuth
	case s.PrevVersion:
		return s.PreviousAuth
	}
	return ""
}

// VIP is a service's virtual address in one network. Addr is the zero Addr in a
// network where the service has none (dnsrr).
type VIP struct {
	NetworkID string
	Addr      netip.Addr
}

// Network is a swarm-scoped network. Users write Spec; allocate writes the rest.
type Network struct {
	ID string
	Meta
	Spec    *swarm.NetworkSpec
	Subnet  netip.Prefix // zero until allocated
	Gateway netip.Addr
	VNI     uint32
	// AllocErr says why the network has no subnet yet.
	AllocErr string
	// PendingDelete is set by a user's removal and gone with the object.
	PendingDelete bool
}

// DefaultDataPort is the UDP port of overlay traffic where the swarm names no other.
const DefaultDataPort = 4789

// driverOverlay is the driver of networks whose addresses are the swarm's to give.
const driverOverlay = "overlay"

// Driver returns the name of the network's driver: "overlay" where its spec names
// none.
func (n *Network) Driver() string {
	if d := n.Spec.DriverConfiguration; d != nil && d.Name != "" {
		return d.Name
	}
	return driverOverlay
}

// Overlay reports whether the network's addresses are the swarm's to give. Any
// other network (host, bridge) stands for each node's own of that name.
func (n *Network) Overlay() bool { return n.Driver() == driverOverlay }

// Secret is a payload that tasks refer to by id.
type Secret struct {
	ID string
	Meta
	Spec *swarm.SecretSpec
}

// Config is like Secret, readable by users.
type Config struct {
	ID string
	Meta
	Spec *swarm.ConfigSpec
}

// ServiceSpecVersion is one version of a service's spec, stored once however
// many tasks run it.
type ServiceSpecVersion struct {
	ServiceID string
	Version   uint64
	Spec      *swarm.ServiceSpec
}
