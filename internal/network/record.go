package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/durable"
)

// netRecord is a network of this host as it is kept on disk. A record is never
// changed once others can see it.
type netRecord struct {
	ID         string
	Name       string
	Driver     string // bridge, host or null
	Created    time.Time
	Subnet     netip.Prefix
	Range      netip.Prefix
	Configured bool // the user named the subnet
	Gateway    netip.Addr
	Aux        map[string]netip.Addr
	IPAM       network.IPAM // as it was asked for
	Options    map[string]string
	Labels     map[string]string
	Internal   bool
	Attachable bool
	Link       string // the bridge's interface
	Foreign    bool   // that interface was there before us and stays after us
	MTU        int
	ICC        bool
	Masquerade bool
	HostIP     netip.Addr // where ports are published by default
	Default    bool       // the network "bridge": no names
}

// aux reports whether a is kept back by --aux-address.
func (r *netRecord) aux(a netip.Addr) bool {
	for _, v := range r.Aux {
		if v == a {
			return true
		}
	}
	return false
}

// named reports whether containers in r find each other by name.
func (r *netRecord) named() bool {
	return r.Driver == driverBridge && !r.Default && r.Name != gatewayNetwork
}

// sandbox is a container's namespace on record. A record is replaced, never
// changed, once others can see it.
type sandbox struct {
	ContainerID string
	Name        string
	Hostname    string
	NetNS       string // "" on the host's network
	Dir         string
	Endpoints   []endpoint
	Ports       []binding
	DNS         []netip.Addr
	DNSSearch   []string
	DNSOptions  []string
	ExtraHosts  []string
	Resolver    bool // names are answered inside, at 127.0.0.11
}

// endpoint is a container's place in a network on record.
type endpoint struct {
	Endpoint
	Kind     string // the network's driver
	IfName   string // inside
	HostLink string // our end of the veth pair
	Links    []string
	Priority int
	// Hidden marks the place in the gateway network that a task has besides
	// those it asked for.
	Hidden bool
	// External is set for a place in a swarm network that has a way out.
	External bool
	// Task is what the swarm knows a plain container's place by.
	Task    string
	Ingress bool // a place in the ingress network, which has no names
}

// gateway returns the endpoint that carries the default route, or nil.
func (s *sandbox) gateway() *endpoint {
	var best *endpoint
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		switch {
		case !ep.Gateway.IsValid() || ep.Kind != driverBridge:
		case best == nil, ep.Hidden && !best.Hidden, ep.Hidden == best.Hidden && ep.Priority > best.Priority:
			best = ep
		}
	}
	return best
}

// in returns the sandbox's endpoint in a network, or nil.
func (s *sandbox) in(networkID string) *endpoint {
	for i := range s.Endpoints {
		if s.Endpoints[i].NetworkID == networkID {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// nextIf returns the first interface name nobody in the sandbox has.
func (s *sandbox) nextIf() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		free := true
		for j := range s.Endpoints {
			free = free && s.Endpoints[j].IfName != name
		}
		if free {
			return name
		}
	}
}

// public returns what the callers of Join see.
func (s *sandbox) public() *Sandbox {
	out := &Sandbox{NetNS: s.NetNS, Ports: portMap(s.Ports)}
	for _, ep := range s.Endpoints {
		if !ep.Hidden {
			out.Endpoints = append(out.Endpoints, ep.Endpoint)
		}
	}
	return out
}

// records is a directory of JSON files, one a record.
type records struct{ dir string }

// put writes a record, one caller a record at a time. A network must outlive a
// power cut: one whose file was cut off would keep the daemon from starting.
// (Sandboxes are in memory, where that costs nothing.)
func (r records) put(id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.dir, id+".json"), data)
}

// remove forgets a record; one that is not there is no error.
func (r records) remove(id string) error {
	err := os.Remove(filepath.Join(r.dir, id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load calls each with the content of every record, and makes the directory if
// there is none yet.
func (r records) load(each func(data []byte) error) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(r.dir, f.Name())
		if !strings.HasSuffix(f.Name(), ".json") { // of a crash while writing
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := each(data); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
