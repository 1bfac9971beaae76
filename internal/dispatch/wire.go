package dispatch

import (
	"net/netip"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// up is a message from a node in its session; any of its parts may be missing,
// but the first message has Hello.
type up struct {
	Hello    *Hello       `cbor:",omitempty"`
	Beat     uint64       `cbor:",omitempty"` // a heartbeat, answered with its number
	Ack      uint64       `cbor:",omitempty"` // the assignment version the node follows
	Statuses []TaskStatus `cbor:",omitempty"`
}

// Hello is how a node introduces itself when it opens a session.
type Hello struct {
	Description *swarm.NodeDescription
	// Addr is the address the node is known by, DataAddr where it receives
	// overlay traffic; zero means: the one it connects from.
	Addr     netip.Addr
	DataAddr netip.Addr
}

// TaskStatus is what a node observed of one of its tasks.
type TaskStatus struct {
	ID     string
	Status cluster.Status
}

// down is a message from a manager in a node's session.
type down struct {
	// Redirect names the leader's address; the session ends with it.
	Redirect string      `cbor:",omitempty"`
	Session  *Session    `cbor:",omitempty"`
	Beat     uint64      `cbor:",omitempty"`
	Assign   *assignment `cbor:",omitempty"`
	Open     *open       `cbor:",omitempty"`
}

// Session is what a node is told about the swarm besides its assignments.
type Session struct {
	Period    time.Duration // between heartbeats
	Managers  []Manager
	Leader    string // the id of the node that leads
	GossipKey []byte
	// Role is the role the node should have a certificate for.
	Role swarm.NodeRole
	// Availability is the node's, for those who show it.
	Availability swarm.NodeAvailability
}

// Manager is where a manager is reached.
type Manager struct {
	NodeID string
	Addr   string // host:port
}

// assignment is a set of items (complete, when Base is 0) or what changed since
// version Base. More says that the version goes on in the next message.
type assignment struct {
	Base    uint64
	Version uint64
	More    bool
	Items   []*wireItem
}

// wireItem is a cluster.Item on the wire; a nil Body says: forget it.
type wireItem struct {
	_    struct{} `cbor:",toarray"`
	Kind cluster.ItemKind
	ID   string
	Body cbor.RawMessage
}

// open asks the node to open a stream of its own to the manager, for work that
// must not hold up the session.
type open struct {
	Stream string
	Kind   string
	Body   cbor.RawMessage
}

// frame is a message in such a stream: data, and an error when it ends badly.
type frame struct {
	Stream string  `cbor:",omitempty"` // in the first frame
	Data   []byte  `cbor:",omitempty"`
	Err    *failed `cbor:",omitempty"`
}

// watchRequest asks the leader, for another manager, to open a stream to a node.
type watchRequest struct {
	NodeID string
	Kind   string
	Body   cbor.RawMessage
}

// IssueRequest asks for a node certificate: for a new node by Token, for a known
// one (it comes with its certificate, even if that has ended) without.
type IssueRequest struct {
	CSR          []byte
	Token        string
	Availability swarm.NodeAvailability
}

// IssueReply carries the certificate, or the leader's address.
type IssueReply struct {
	Redirect  string `cbor:",omitempty"`
	NodeID    string
	ClusterID string
	Cert      []byte
	Role      swarm.NodeRole
}

// JoinRequest asks the leader to make the caller, which holds a manager's
// certificate, a member of the Raft group.
type JoinRequest struct{ Addr string }

// leaveRequest tells the leader that the caller leaves the swarm.
type leaveRequest struct{}

// AttachRequest asks for a plain container's place in an attachable network.
type AttachRequest struct {
	Network     string // name or id
	ContainerID string
	Addr        netip.Addr // the one asked for, or zero
	Names       []string   // it is to answer to
}

// AttachReply says where the container is.
type AttachReply struct {
	Redirect  string `cbor:",omitempty"`
	TaskID    string
	NetworkID string
	Addr      netip.Addr
}

// detachRequest gives a place back.
type detachRequest struct{ TaskID string }

// forwardRequest carries a call of control's API from a follower to the leader.
type forwardRequest struct {
	Method string
	Body   []byte
}

type forwardReply struct {
	Redirect string  `cbor:",omitempty"`
	Body     []byte  `cbor:",omitempty"`
	Err      *failed `cbor:",omitempty"`
}

// empty is a reply that says nothing but where else to ask.
type empty struct {
	Redirect string `cbor:",omitempty"`
}
