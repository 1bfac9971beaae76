package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
)

// Docker's names of drivers, networks and options.
const (
	driverBridge  = "bridge"
	driverHost    = "host"
	driverNull    = "null"
	driverOverlay = "overlay"

	gatewayNetwork = "docker_gwbridge"
	gatewayLink    = "skep_gwbridge"

	optName       = "com.docker.network.bridge.name"
	optICC        = "com.docker.network.bridge.enable_icc"
	optMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP     = "com.docker.network.bridge.host_binding_ipv4"
	optDefault    = "com.docker.network.bridge.default_bridge"
	optMTU        = "com.docker.network.driver.mtu"
)

// Create makes a network and returns its id.
func (m *Manager) Create(ctx context.Context, req network.CreateRequest) (network.CreateResponse, error) {
	if err := checkCreate(req); err != nil {
		return network.CreateResponse{}, err
	}
	r, err := newRecord(req, m.cfg.MTU)
	if err != nil {
		return network.CreateResponse{}, err
	}
	if err := m.nets.take(ctx); err != nil {
		return network.CreateResponse{}, err
	}
	defer m.nets.give()
	if err := m.create(r); err != nil {
		return network.CreateResponse{}, err
	}
	m.log.Info("network created", "network", r.Name, "id", r.ID, "subnet", r.Subnet)
	m.publish(events.ActionCreate, r)
	return network.CreateResponse{ID: r.ID}, nil
}

// checkCreate refuses what no host network can be.
func checkCreate(req network.CreateRequest) error {
	switch req.Name {
	case "":
		return cluster.Invalidf("invalid name: name is empty")
	case network.NetworkBridge, network.NetworkHost, network.NetworkNone, network.NetworkDefault:
		return cluster.Deniedf("operation is not permitted on predefined %s network ", req.Name)
	}
	if strings.ContainsAny(req.Name, "/\\") {
		return cluster.Invalidf("invalid name: %q must not contain / or \\", req.Name)
	}
	switch {
	case req.Driver == driverHost || req.Driver == driverNull:
		return cluster.Deniedf("only one instance of %q network is allowed", req.Driver)
	case req.Driver == "macvlan" || req.Driver == "ipvlan":
		return cluster.NotImplementedf("networks of driver %s are not built yet", req.Driver)
	case req.Driver != "" && req.Driver != driverBridge && req.Driver != network.NetworkDefault:
		return cluster.NotFoundf("could not find plugin %s in v1 plugin registry: plugin not found", req.Driver)
	case req.EnableIPv6 != nil && *req.EnableIPv6:
		return cluster.NotImplementedf("IPv6 on bridge networks is not built yet")
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return cluster.NotImplementedf("networks without IPv4 are not built yet")
	case req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return cluster.NotImplementedf("config-only networks are not built yet")
	case req.Ingress:
		return cluster.Invalidf("ingress network cannot be of driver bridge")
	}
	return nil
}

// newRecord reads a request. Subnet and gateway may be left open.
func newRecord(req network.CreateRequest, mtu int) (*netRecord, error) {
	r := &netRecord{ID: newID(), Name: req.Name, Driver: driverBridge, Created: time.Now().UTC(),
		Options: maps.Clone(req.Options), Labels: maps.Clone(req.Labels),
		Internal: req.Internal, Attachable: req.Attachable,
		MTU: mtu, ICC: true, Masquerade: true, HostIP: netip.IPv4Unspecified()}
	r.Link = "br-" + r.ID[:12]
	if r.Options == nil {
		r.Options = map[string]string{}
	}
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	if err := r.readOptions(); err != nil {
		return nil, err
	}
	return r, r.readIPAM(req.IPAM)
}

func (r *netRecord) readOptions() (err error) {
	for _, key := range sortedKeys(r.Options) {
		v := r.Options[key]
		switch key {
		case optName:
			if v == "" || len(v) > maxIfName || strings.ContainsAny(v, "/ \t\n:") || v == "." || v == ".." {
				return cluster.Invalidf("invalid bridge name %q", v)
			}
			r.Link = v
		case optICC:
			r.ICC, err = strconv.ParseBool(v)
		case optMasquerade:
			r.Masquerade, err = strconv.ParseBool(v)
		case optMTU:
			r.MTU, err = strconv.Atoi(v)
			if err == nil && (r.MTU < 68 || r.MTU > 65535) {
				err = cluster.Invalidf("out of range")
			}
		case optHostIP:
			r.HostIP, err = netip.ParseAddr(v)
			if err == nil && !r.HostIP.Is4() {
				err = cluster.Invalidf("not an IPv4 address")
			}
		}
		if err != nil {
			return cluster.Invalidf("invalid value %q for network option %s: %v", v, key, err)
		}
	}
	return nil
}

func (r *netRecord) readIPAM(ipam *network.IPAM) error {
	r.IPAM = network.IPAM{Driver: "default"}
	if ipam == nil {
		return nil
	}
	if ipam.Driver != "" && ipam.Driver != "default" {
		return cluster.NotFoundf("could not find plugin %s in v1 plugin registry: plugin not found", ipam.Driver)
	}
	r.IPAM.Options = ipam.Options
	for _, c := range ipam.Config {
		if c.Subnet.IsValid() && !c.Subnet.Addr().Is4() {
			return cluster.NotImplementedf("IPv6 on bridge networks is not built yet")
		}
		if r.Subnet.IsValid() {
			return cluster.Invalidf("bridge driver doesn't support multiple subnets")
		}
		if c.Subnet.IsValid() && c.Subnet.Bits() > 30 {
			return cluster.Invalidf("invalid subnet %s: it has no room for a gateway and a container", c.Subnet)
		}
		r.Subnet, r.Range, r.Gateway, r.Aux = c.Subnet, c.IPRange, c.Gateway, c.AuxAddress
		if !c.Subnet.IsValid() {
			if c.IPRange.IsValid() || c.Gateway.IsValid() || len(c.AuxAddress) > 0 {
				return cluster.Invalidf("every ip-range or gateway must have a corresponding subnet")
			}
			continue
		}
		r.Subnet, r.Configured = r.Subnet.Masked(), true
		if c.IPRange.IsValid() && (!r.Subnet.Overlaps(c.IPRange) || c.IPRange.Bits() < r.Subnet.Bits()) {
			return cluster.Invalidf("no matching subnet for range %s", c.IPRange)
		}
		if c.Gateway.IsValid() && !r.Subnet.Contains(c.Gateway) {
			return cluster.Invalidf("no matching subnet for gateway %s", c.Gateway)
		}
		for _, name := range sortedKeys(c.AuxAddress) {
			if !r.Subnet.Contains(c.AuxAddress[name]) {
				return cluster.Invalidf("no matching subnet for aux-address %s", c.AuxAddress[name])
			}
		}
		r.IPAM.Config = []network.IPAMConfig{c}
	}
	return nil
}

// create gives r what it lacks, puts it on record and brings it up. The turn for
// networks is held.
func (m *Manager) create(r *netRecord) error {
	routed, err := m.links.routed()
	if err != nil {
		return err
	}
	if err := m.complete(r, routed); err != nil {
		return err
	}
	if err := m.netsDir.put(r.ID, r); err != nil {
		return err
	}
	existed, err := m.links.bridge(r)
	if r.Foreign = existed; existed && err == nil {
		err = m.netsDir.put(r.ID, r)
	}
	if err == nil {
		err = m.fw.addNet(r)
	}
	if err != nil {
		return errors.Join(err, m.unmake(r))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.networks[r.ID] = r
	return nil
}

// complete checks r against the networks there are and picks its subnet.
func (m *Manager) complete(r *netRecord, routed []netip.Prefix) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var used []netip.Prefix
	for _, other := range m.networks {
		if other.ID == r.ID {
			continue
		}
		if other.Name == r.Name {
			return cluster.Conflictf("network with name %s already exists", r.Name)
		}
		if other.Link == r.Link {
			return cluster.Deniedf("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name",
				r.ID, r.Link, other.ID, other.Link)
		}
		used = append(used, other.Subnet)
	}
	for _, n := range m.swarmNetworks() {
		if n.Name == r.Name {
			return cluster.Conflictf("network with name %s already exists", r.Name)
		}
		used = append(used, n.Subnet)
	}
	if r.Subnet.IsValid() {
		if overlapping(r.Subnet, used) != nil {
			return cluster.Deniedf("Pool overlaps with other one on this address space")
		}
	} else {
		var err error
		if r.Subnet, err = pickSubnet(m.cfg.AddressPools, append(used, routed...)); err != nil {
			return err
		}
	}
	if !r.Gateway.IsValid() {
		r.Gateway = pickGateway(r.Subnet)
		if r.Range.IsValid() && r.Range.Bits() < 31 {
			r.Gateway = pickGateway(r.Range)
		}
	}
	if len(r.IPAM.Config) == 0 {
		r.IPAM.Config = []network.IPAMConfig{{}}
	}
	c := &r.IPAM.Config[0]
	c.Subnet, c.Gateway = r.Subnet, r.Gateway
	return nil
}

// unmake takes a network off the host and off the record.
func (m *Manager) unmake(r *netRecord) error {
	err := m.fw.delNet(r)
	if !r.Foreign {
		err = errors.Join(err, m.links.remove(r.Link))
	}
	return errors.Join(err, m.netsDir.remove(r.ID))
}

// Remove removes a user-defined network that nobody uses.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	if err := m.nets.take(ctx); err != nil {
		return err
	}
	defer m.nets.give()
	r, err := m.retire(ref)
	if err != nil {
		return err
	}
	if err := m.unmake(r); err != nil {
		return fmt.Errorf("network %s: %w", r.Name, err)
	}
	m.log.Info("network removed", "network", r.Name, "id", r.ID)
	m.publish(events.ActionDestroy, r)
	return nil
}

// retire finds a network that may go and takes it out of sight, so that nobody
// joins it any more.
func (m *Manager) retire(ref string) (*netRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	if r.Default || r.Driver != driverBridge {
		return nil, cluster.Deniedf("%s is a pre-defined network and cannot be removed", r.Name)
	}
	for _, s := range m.sandboxes {
		if s.in(r.ID) != nil {
			return nil, cluster.Deniedf("error while removing network: network %s id %s has active endpoints", r.Name, r.ID)
		}
	}
	delete(m.networks, r.ID)
	return r, nil
}

// find returns one of the host's own networks by id, name or unique prefix of
// its id. m.mu is held.
func (m *Manager) find(ref string) (*netRecord, error) {
	if r := m.networks[ref]; r != nil {
		return r, nil
	}
	if ref == network.NetworkDefault {
		ref = network.NetworkBridge
	}
	var byPrefix []*netRecord
	for _, r := range m.networks {
		if r.Name == ref {
			return r, nil
		}
		if ref != "" && strings.HasPrefix(r.ID, ref) {
			byPrefix = append(byPrefix, r)
		}
	}
	switch len(byPrefix) {
	case 0:
		return nil, cluster.NotFoundf("network %s not found", ref)
	case 1:
		return byPrefix[0], nil
	}
	return nil, cluster.Invalidf("network %s is ambiguous (%d matches found based on ID prefix)", ref, len(byPrefix))
}

// predefined sees to it that bridge, host and none are on record as configured.
func (m *Manager) predefined() error {
	for _, p := range []struct{ name, driver string }{{network.NetworkHost, driverHost}, {network.NetworkNone, driverNull}} {
		if _, err := m.find(p.name); err == nil {
			continue
		}
		r := &netRecord{ID: newID(), Name: p.name, Driver: p.driver, Created: time.Now().UTC(),
			IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{}}
		if err := m.netsDir.put(r.ID, r); err != nil {
			return err
		}
		m.networks[r.ID] = r
	}
	return m.defaultBridge()
}

// defaultBridge puts the network "bridge" on record as the configuration wants it.
func (m *Manager) defaultBridge() error {
	old, _ := m.find(network.NetworkBridge)
	if m.cfg.Bridge == "none" {
		if old == nil {
			return nil
		}
		delete(m.networks, old.ID)
		return m.unmake(old)
	}
	r := &netRecord{ID: newID(), Name: network.NetworkBridge, Driver: driverBridge, Created: time.Now().UTC(),
		Link: m.cfg.Bridge, MTU: m.cfg.MTU, ICC: !m.cfg.NoICC, Masquerade: true, Default: true,
		HostIP: netip.IPv4Unspecified(), IPAM: network.IPAM{Driver: "default"}, Labels: map[string]string{}}
	if err := m.inherit(r, old); err != nil {
		return err
	}
	if m.cfg.BIP.IsValid() {
		r.Subnet, r.Gateway = m.cfg.BIP.Masked(), m.cfg.BIP.Addr()
	}
	r.Options = map[string]string{optDefault: "true", optICC: strconv.FormatBool(r.ICC), optMasquerade: "true",
		optHostIP: r.HostIP.String(), optName: r.Link, optMTU: strconv.Itoa(r.MTU)}
	routed, err := m.links.routed()
	if err != nil {
		return err
	}
	if err := m.complete(r, routed); err != nil {
		return fmt.Errorf("network %s: %w", r.Name, err)
	}
	m.networks[r.ID] = r
	return m.netsDir.put(r.ID, r)
}

// inherit takes over what the default bridge's record r does not decide: from the
// old record, or from an interface that an operator made for it.
func (m *Manager) inherit(r, old *netRecord) error {
	if old != nil {
		r.ID, r.Created = old.ID, old.Created
		if old.Link == r.Link {
			r.Subnet, r.Gateway, r.Foreign = old.Subnet, old.Gateway, old.Foreign
			return nil
		}
		if !old.Foreign {
			if err := m.links.remove(old.Link); err != nil {
				return err
			}
		}
	}
	addr, there, err := m.links.existing(r.Link)
	if err != nil {
		return err
	}
	if r.Foreign = there; addr.IsValid() {
		r.Subnet, r.Gateway = addr.Masked(), addr.Addr()
	}
	return nil
}

// newID returns an id of Docker's kind: 64 random hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
