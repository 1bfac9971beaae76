package network

import (
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/cluster"
)

// Pool is a range that subnets of Size bits are cut from for networks that name none.
type Pool struct {
	Base netip.Prefix
	Size int
}

// Config says how a host's networks are made. The zero value of each field but
// Dir and ExecDir means what Docker does.
type Config struct {
	// Dir holds the networks users made; it outlives a reboot.
	Dir string
	// ExecDir holds the namespaces (netns/) and the records of the running
	// sandboxes; neither outlives a reboot.
	ExecDir string
	// Bridge is the interface of the network "bridge": "skep0" when empty, and
	// with "none" the host has no such network.
	Bridge string
	// BIP is that bridge's own address with its subnet's length.
	BIP          netip.Prefix
	AddressPools []Pool
	MTU          int // of bridges that name none: 1500
	NoICC        bool
	// ForwardDNS are the servers that names of the outside are asked of;
	// without any they are those in ResolvConf.
	ForwardDNS []netip.Addr
	DNSSearch  []string
	DNSOptions []string
	ResolvConf string // "/etc/resolv.conf"
	// Prepared is how many namespaces are kept ready for the next containers.
	Prepared int
	// DataAddr tells the address this node receives overlay traffic at; nil, or
	// zero: it is found out from what the swarm tells (see learnSelf).
	DataAddr func() netip.Addr
	// Swarm gives plain containers places in attachable networks; nil: nobody
	// does, and only tasks are in swarm networks.
	Swarm Swarm
	// Publish, if set, is told of networks created and destroyed (engine's Publish).
	Publish func(events.Type, events.Action, events.Actor)
	Log     *slog.Logger
}

// Validate fills in the defaults and reports what cannot be.
func (c *Config) Validate() error {
	if c.Dir == "" || c.ExecDir == "" {
		return cluster.Invalidf("network: Dir and ExecDir must be set")
	}
	// Namespaces are handed out as paths: they must mean the same everywhere.
	for _, p := range []*string{&c.Dir, &c.ExecDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if c.Bridge == "" {
		c.Bridge = "skep0"
	}
	if len(c.Bridge) > maxIfName {
		return cluster.Invalidf("invalid bridge name %q: an interface's name has at most %d characters", c.Bridge, maxIfName)
	}
	if c.BIP.IsValid() && (!c.BIP.Addr().Is4() || c.BIP.Bits() > 30) {
		return cluster.Invalidf("invalid bridge address %s: an IPv4 address with a prefix of at most 30 bits is needed", c.BIP)
	}
	if c.AddressPools == nil {
		c.AddressPools = defaultPools()
	}
	for _, p := range c.AddressPools {
		if !p.Base.IsValid() || !p.Base.Addr().Is4() || p.Size < p.Base.Bits() || p.Size > 30 {
			return cluster.Invalidf("invalid address pool %s, size %d", p.Base, p.Size)
		}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Prepared == 0 {
		c.Prepared = 4
	}
	if c.DataAddr == nil {
		c.DataAddr = func() netip.Addr { return netip.Addr{} }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// defaultPools are Docker's: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16
// cut in /20.
func defaultPools() []Pool {
	var pools []Pool
	for i := byte(17); i < 32; i++ {
		pools = append(pools, Pool{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i, 0, 0}), 16), 16})
	}
	return append(pools, Pool{netip.MustParsePrefix("192.168.0.0/16"), 20})
}
