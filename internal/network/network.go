// Package network owns a host's networks: bridge, host and none, user-defined
// bridges, the swarm's overlays and the routing mesh, their addresses, published
// ports, names and firewall rules. All of it is netlink and nftables from Go, in
// our own tables. It never talks to managers: agent hands it what the swarm
// wants. engine and httpapi call it for the rest.
package network

import (
	"context"
	"net/netip"

	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
)

var errTodo = cluster.NotImplementedf("not implemented")

// Manager owns the networks of one host (one network namespace).
type Manager struct{}

// SandboxRequest describes the network namespace a container is to get.
type SandboxRequest struct {
	ContainerID   string
	ContainerName string // without the slash
	Hostname      string
	Endpoints     []EndpointRequest // none: the network "none" (loopback only)
	Ports         network.PortMap   // -p: container port to host bindings
	// Dir is where hosts, hostname and resolv.conf are written for mounting.
	Dir        string
	DNS        []netip.Addr
	DNSSearch  []string
	DNSOptions []string
	ExtraHosts []string // name:address
	Sysctls    map[string]string
}

// EndpointRequest is a container's wish for a place in one network. In a swarm
// network Addr is the one the allocator gave; elsewhere it may be zero.
type EndpointRequest struct {
	Network string // name or id
	Addr    netip.Addr
	MAC     string
	Aliases []string
	Links   []string
	Opts    map[string]string
}

// Sandbox is a container's network namespace, made and connected.
type Sandbox struct {
	NetNS     string // path of the namespace, for the OCI spec
	Endpoints []Endpoint
	Ports     network.PortMap // as they were bound
}

// Endpoint is a container's place in one network.
type Endpoint struct {
	NetworkID   string
	NetworkName string
	EndpointID  string
	Addr        netip.Prefix
	Gateway     netip.Addr
	MAC         string
	Aliases     []string
	DNSNames    []string
}

// Create makes a network and returns its id.
func (m *Manager) Create(ctx context.Context, req network.CreateRequest) (network.CreateResponse, error) {
	return network.CreateResponse{}, errTodo
}

// Remove removes a user-defined network that nobody uses.
func (m *Manager) Remove(ctx context.Context, ref string) error { return errTodo }

// List returns the host's networks, swarm networks it has a part in included.
func (m *Manager) List(ctx context.Context) ([]network.Inspect, error) { return nil, errTodo }

// Inspect returns one network by name, id or unique prefix.
func (m *Manager) Inspect(ctx context.Context, ref string) (network.Inspect, error) {
	return network.Inspect{}, errTodo
}

// Join makes the sandbox of a container that is about to start. It is
// idempotent: a sandbox that is there already is returned as it is.
func (m *Manager) Join(ctx context.Context, req SandboxRequest) (*Sandbox, error) {
	return nil, errTodo
}

// Leave removes a container's sandbox and gives its addresses and ports back.
// It is idempotent.
func (m *Manager) Leave(ctx context.Context, containerID string) error { return errTodo }

// Connect and Disconnect change the networks of a running container.
func (m *Manager) Connect(ctx context.Context, containerID string, ep EndpointRequest) (*Endpoint, error) {
	return nil, errTodo
}

// Disconnect takes a running container out of a network.
func (m *Manager) Disconnect(ctx context.Context, containerID, network string, force bool) error {
	return errTodo
}

// Adopt tells which containers still run after the daemon's restart; sandboxes
// of others are removed. The kept ones are found on disk and go on unharmed.
func (m *Manager) Adopt(ctx context.Context, running []string) error { return errTodo }

// Apply brings the swarm's part of the host to the wanted items (kinds network,
// peer, endpoint, service; others are ignored): the whole set when complete,
// else what changed. It returns when the data path follows them. Idempotent.
func (m *Manager) Apply(ctx context.Context, complete bool, items []cluster.Item) error {
	return errTodo
}

// LeaveSwarm removes every swarm network from the host.
func (m *Manager) LeaveSwarm(ctx context.Context) error { return errTodo }
