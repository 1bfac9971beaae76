package cluster

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"
)

// What a manager tells a node: a set of items, keyed by kind and id. The first
// message of a session carries the complete set, later ones what changed. All of
// it is derived from the replicated state alone, so that who runs where, names,
// virtual addresses and back ends can be late but never contradictory.

// ItemKind says which pointer of an Item is set.
type ItemKind uint8

// The kinds of item.
const (
	ItemTask     ItemKind = 1 // a task of this node; id: the task's
	ItemNetwork  ItemKind = 2 // a network this node has a part in; id: the network's
	ItemPeer     ItemKind = 3 // a node that has a part in it too; id: network/node
	ItemEndpoint ItemKind = 4 // a task's place in it, on any node; id: network/task
	ItemService  ItemKind = 5 // a service's name, address and ports in it; id: network/service
	ItemSecret   ItemKind = 6
	ItemConfig   ItemKind = 7
)

// Item is one thing a node is told. With no pointer set it says: forget it.
type Item struct {
	Kind     ItemKind
	ID       string
	Task     *WantedTask
	Network  *WantedNetwork
	Peer     *Peer
	Endpoint *Endpoint
	Service  *VirtualService
	Secret   *Secret
	Config   *Config
}

// WantedTask is everything a node needs to run a task.
type WantedTask struct {
	ID            string
	Name          string // Task.Name
	ServiceID     string
	ServiceName   string
	ServiceLabels map[string]string
	Slot          int
	NodeID        string
	Desired       State
	Spec          *swarm.TaskSpec
	HostPorts     []swarm.PortConfig // published in host mode
	TCPPorts      []uint32           // its ends of all published TCP ports
	Networks      []Attachment
	LogDriver     *swarm.Driver // the swarm's default, if the spec has none
	// RegistryAuth is what the registry is shown for the image, as the API's
	// header has it; "" for nothing.
	RegistryAuth string
}

// WantedNetwork is a swarm network as a node builds it.
type WantedNetwork struct {
	ID         string
	Name       string
	Driver     string // "overlay", or a host's own network by name ("host", "bridge")
	Subnet     netip.Prefix
	Gateway    netip.Addr
	VNI        uint32
	Port       uint32 // UDP port of the data path
	MTU        int    // 0: derive it from the path
	Ingress    bool
	Internal   bool
	Attachable bool
	Encrypted  bool
	Options    map[string]string
	Labels     map[string]string
	// NodeAddr is this node's own address in the network; set in ingress only.
	NodeAddr netip.Addr
}

// Peer is another node's part in a network.
type Peer struct {
	NetworkID string
	NodeID    string
	DataAddr  netip.Addr // where it receives VXLAN
	NodeAddr  netip.Addr // its own address in the network (ingress), or zero
}

// Endpoint is a task's (or attached container's) place in a network, on any
// node of it, this one included.
type Endpoint struct {
	NetworkID string
	TaskID    string
	NodeID    string
	DataAddr  netip.Addr // of its node
	Addr      netip.Addr
	ServiceID string   // "" for a plain container
	Names     []string // names it answers to by itself: task name, container name, aliases of a plain container
	// Serving is set while new connections may be sent to it.
	Serving bool
}

// VirtualService is a service as one network sees it. Its back ends are the
// endpoints of that service in that network which are Serving.
type VirtualService struct {
	NetworkID string
	ServiceID string
	Name      string
	Aliases   []string
	VIP       netip.Addr         // zero for dnsrr
	Ports     []swarm.PortConfig // in the ingress network: the ports to publish
}

// MAC returns the hardware address of the holder of a in an overlay: 02:42 and
// the four bytes of the address. So nobody has to ask for it, and a node's MAC
// on the ingress network carries the node's address.
func MAC(a netip.Addr) [6]byte {
	b := a.As4()
	return [6]byte{0x02, 0x42, b[0], b[1], b[2], b[3]}
}
