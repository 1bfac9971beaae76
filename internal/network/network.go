// Package network owns a host's networks: bridge, host and none, user-defined
// bridges, the swarm's overlays and the routing mesh, their addresses, published
// ports, names and firewall rules. All of it is netlink and nftables from Go, in
// our own tables. It never talks to managers: agent hands it what the swarm
// wants. engine and httpapi call it for the rest.
package network

import (
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

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
	// Plain is set for a container that is no task: its addresses in swarm
	// networks are wishes. A task's are given by the swarm.
	Plain bool
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
	// GwPriority decides which network carries the default route: the highest,
	// and the first among equals.
	GwPriority int

	task string // by which a place the swarm gave is given back
}

// Sandbox is a container's network namespace, made and connected.
type Sandbox struct {
	// NetNS is the path of the namespace, for the OCI spec; "" in the network
	// "host": the daemon's own.
	NetNS     string
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
