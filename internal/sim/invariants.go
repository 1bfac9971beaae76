package sim

import (
	"fmt"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Invariants returns what of the things that must always hold does not.
func Invariants(v store.View) error {
	for _, check := range []func(store.View) error{addresses, ports, places, hostPorts} {
		if err := check(v); err != nil {
			return err
		}
	}
	return nil
}

type held struct {
	network string
	addr    netip.Addr
}

// addresses: nobody holds an address that another holds.
func addresses(v store.View) error {
	by := map[held]string{}
	take := func(network string, a netip.Addr, who string) error {
		if !a.IsValid() {
			return nil
		}
		k := held{network, a}
		if other := by[k]; other != "" {
			return fmt.Errorf("%s and %s both hold %s in %s", other, who, a, network)
		}
		by[k] = who
		if n := v.Network(network); n != nil && !n.Subnet.Contains(a) {
			return fmt.Errorf("%s holds %s, which is not in %s", who, a, n.Subnet)
		}
		return nil
	}
	for _, n := range v.Networks() {
		if err := take(n.ID, n.Gateway, "gateway"); err != nil {
			return err
		}
	}
	for _, s := range v.Services() {
		for _, vip := range s.VIPs {
			if err := take(vip.NetworkID, vip.Addr, "service "+s.ID); err != nil {
				return err
			}
		}
	}
	for _, n := range v.Nodes() {
		for id, a := range n.Addrs {
			if err := take(id, a, "node "+n.ID); err != nil {
				return err
			}
		}
	}
	for _, t := range v.Tasks() {
		if t.Status.State.Terminal() {
			continue
		}
		for _, at := range t.Networks {
			if err := take(at.NetworkID, at.Addr, "task "+t.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// ports: no two services publish one port.
func ports(v store.View) error {
	by := map[string]string{}
	for _, s := range v.Services() {
		for _, p := range s.Ports {
			if cluster.HostPort(p) || p.PublishedPort == 0 {
				continue
			}
			k := fmt.Sprintf("%d/%s", p.PublishedPort, p.Protocol)
			if other := by[k]; other != "" {
				return fmt.Errorf("services %s and %s both publish %s", other, s.ID, k)
			}
			by[k] = s.ID
		}
	}
	return nil
}

// places: no place has two tasks of one version that are wanted and alive, but
// for services that start first (there a drained node's waits for its successor)
// or are gone.
func places(v store.View) error {
	type key struct {
		service string
		place   cluster.SlotKey
		version uint64
	}
	by := map[key]string{}
	for _, t := range v.Tasks() {
		if t.Desired > cluster.StateRunning || t.Status.State.Terminal() || t.Attach != nil || startsFirst(v.Service(t.ServiceID)) {
			continue
		}
		k := key{t.ServiceID, t.Key(), t.SpecVersion}
		if other := by[k]; other != "" {
			return fmt.Errorf("tasks %s and %s both have place %v of service %s", other, t.ID, t.Key(), t.ServiceID)
		}
		by[k] = t.ID
	}
	return nil
}

func startsFirst(s *cluster.Service) bool {
	return s == nil || s.Spec.UpdateConfig != nil && s.Spec.UpdateConfig.Order == swarm.UpdateOrderStartFirst
}

// hostPorts: no node's port is given to two tasks.
func hostPorts(v store.View) error {
	by := map[string]string{}
	for _, t := range v.Tasks() {
		sv := v.SpecOf(t.ServiceID, t.SpecVersion)
		if !t.MayBeAlive() || sv == nil || sv.Spec.EndpointSpec == nil {
			continue
		}
		for _, p := range sv.Spec.EndpointSpec.Ports {
			if !cluster.HostPort(p) || p.PublishedPort == 0 {
				continue
			}
			k := fmt.Sprintf("%s %d/%s", t.NodeID, p.PublishedPort, p.Protocol)
			if other := by[k]; other != "" {
				return fmt.Errorf("tasks %s and %s both have port %s", other, t.ID, k)
			}
			by[k] = t.ID
		}
	}
	return nil
}
