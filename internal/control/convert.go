package control

import (
	"maps"
	"net/netip"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

// This file alone knows both the store's records and the Engine API's objects.

func clusterAPI(c *cluster.Cluster) swarm.Swarm {
	info := swarm.ClusterInfo{
		ID: c.ID, Meta: c.API(), Spec: *c.Spec,
		DefaultAddrPool: c.DefaultAddrPool, SubnetSize: c.SubnetSize, DataPathPort: c.DataPathPort,
		TLSInfo: tlsInfo(c.RootCA.Cert),
	}
	if len(info.DefaultAddrPool) == 0 {
		info.DefaultAddrPool = nil // clients show an empty list as if there were one
	}
	info.Spec.CAConfig.SigningCAKey = ""
	return swarm.Swarm{
		ClusterInfo: info,
		JoinTokens:  swarm.JoinTokens{Worker: c.RootCA.WorkerToken, Manager: c.RootCA.ManagerToken},
	}
}

func nodeAPI(n *cluster.Node, members map[string]raftlog.Member) swarm.Node {
	out := swarm.Node{
		ID: n.ID, Meta: n.API(), Spec: *n.Spec,
		Status: swarm.NodeStatus{State: n.Status.State, Message: n.Status.Message, Addr: n.Status.Addr},
	}
	out.Spec.Labels = orEmpty(n.Spec.Labels)
	if n.Description != nil {
		out.Description = *n.Description
	}
	if n.Manager != nil {
		m := members[n.ID]
		reach := swarm.ReachabilityUnreachable
		if m.Reachable {
			reach = swarm.ReachabilityReachable
		}
		out.ManagerStatus = &swarm.ManagerStatus{Leader: m.Leader, Reachability: reach, Addr: n.Manager.Addr}
	}
	return out
}

func orEmpty(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return labels
}

func serviceAPI(v store.View, s *cluster.Service, defaults bool) swarm.Service {
	out := swarm.Service{
		ID: s.ID, Meta: s.API(), Spec: *s.Spec, PreviousSpec: s.Previous, UpdateStatus: s.Update,
	}
	if defaults {
		out.Spec = withDefaults(out.Spec) // the one before stays as it was given
	}
	// Ports and addresses are those of the spec they were made for.
	if len(s.Ports) > 0 || len(s.VIPs) > 0 || s.Allocated == s.SpecVersion {
		out.Endpoint = swarm.Endpoint{Ports: s.Ports}
		if s.Spec.EndpointSpec != nil {
			out.Endpoint.Spec = *s.Spec.EndpointSpec
		}
		for _, vip := range s.VIPs {
			if vip.Addr.IsValid() { // dnsrr has none
				e := swarm.EndpointVirtualIP{NetworkID: vip.NetworkID, Addr: inSubnet(v.Network(vip.NetworkID), vip.Addr)}
				out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, e)
			}
		}
	}
	if s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: s.JobIteration}, LastExecution: s.JobStarted}
	}
	return out
}

// inSubnet returns an address with its network's prefix length.
func inSubnet(n *cluster.Network, a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if n != nil && n.Subnet.IsValid() {
		bits = n.Subnet.Bits()
	}
	return netip.PrefixFrom(a, bits)
}

func taskAPI(v store.View, t *cluster.Task) swarm.Task {
	out := swarm.Task{
		ID:          t.ID,
		Meta:        cluster.Meta{Version: t.Version, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt}.API(),
		Annotations: swarm.Annotations{Labels: map[string]string{}},
		ServiceID:   t.ServiceID, Slot: t.Slot, NodeID: t.NodeID,
		DesiredState: t.Desired.API(),
		Status: swarm.TaskStatus{
			Timestamp: t.Status.At, State: t.Status.State.API(), Message: t.Status.Message, Err: t.Status.Err,
			PortStatus: swarm.PortStatus{Ports: t.Status.Ports},
		},
	}
	if sp := v.SpecOf(t.ServiceID, t.SpecVersion); sp != nil {
		out.Spec = sp.Spec.TaskTemplate
		out.Spec.Runtime = ""
		if m := sp.Spec.Mode; m.ReplicatedJob != nil || m.GlobalJob != nil {
			out.JobIteration = &swarm.Version{Index: t.Iteration}
		}
	}
	if t.Attach != nil {
		out.Spec.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{ContainerID: t.Attach.ContainerID}
		out.Spec.Runtime = swarm.RuntimeNetworkAttachment
	}
	if t.Status.ContainerID != "" {
		out.Status.ContainerStatus = &swarm.ContainerStatus{
			ContainerID: t.Status.ContainerID, PID: t.Status.PID, ExitCode: t.Status.ExitCode,
		}
	}
	for _, at := range t.Networks {
		n := v.Network(at.NetworkID)
		if n == nil {
			continue
		}
		na := swarm.NetworkAttachment{Network: swarmNetworkAPI(n)}
		if at.Addr.IsValid() {
			na.Addresses = []netip.Prefix{inSubnet(n, at.Addr)}
		}
		out.NetworksAttachments = append(out.NetworksAttachments, na)
	}
	return out
}

// networkOptions returns a network's options with the VNI it was given, where
// Docker's driver shows it.
func networkOptions(n *cluster.Network) map[string]string {
	out := map[string]string{}
	if d := n.Spec.DriverConfiguration; d != nil {
		maps.Copy(out, d.Options)
	}
	if n.VNI != 0 {
		out["com.docker.network.driver.overlay.vxlanid_list"] = strconv.FormatUint(uint64(n.VNI), 10)
	}
	return out
}

func swarmNetworkAPI(n *cluster.Network) swarm.Network {
	out := swarm.Network{ID: n.ID, Meta: n.API(), Spec: *n.Spec, DriverState: swarm.Driver{Name: n.Driver(), Options: networkOptions(n)}}
	if n.Subnet.IsValid() {
		out.IPAMOptions = &swarm.IPAMOptions{
			Driver:  swarm.Driver{Name: "default"},
			Configs: []swarm.IPAMConfig{{Subnet: n.Subnet, Gateway: n.Gateway}},
		}
	}
	return out
}

func networkAPI(n *cluster.Network) network.Inspect {
	out := network.Inspect{Network: network.Network{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: "swarm", Driver: n.Driver(),
		EnableIPv4: true, IPAM: network.IPAM{Driver: "default"},
		Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
		Options: networkOptions(n), Labels: n.Spec.Labels,
	}}
	switch {
	case n.Subnet.IsValid():
		out.IPAM.Config = []network.IPAMConfig{{Subnet: n.Subnet, Gateway: n.Gateway}}
		if o := n.Spec.IPAMOptions; o != nil && len(o.Configs) > 0 {
			out.IPAM.Config[0].IPRange = o.Configs[0].Range
		}
	case n.Spec.IPAMOptions != nil:
		for _, c := range n.Spec.IPAMOptions.Configs {
			out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway})
		}
	}
	return out
}

func secretAPI(s *cluster.Secret) swarm.Secret {
	out := swarm.Secret{ID: s.ID, Meta: s.API(), Spec: *s.Spec}
	out.Spec.Data, out.Spec.Labels = nil, orEmpty(s.Spec.Labels)
	return out
}

func configAPI(c *cluster.Config) swarm.Config {
	out := swarm.Config{ID: c.ID, Meta: c.API(), Spec: *c.Spec}
	out.Spec.Labels = orEmpty(c.Spec.Labels)
	return out
}

// withDefaults returns a service's spec with what it leaves open filled in.
func withDefaults(s swarm.ServiceSpec) swarm.ServiceSpec {
	t := &s.TaskTemplate
	if t.ContainerSpec != nil {
		c := *t.ContainerSpec
		if c.StopGracePeriod == nil {
			d := 10 * time.Second
			c.StopGracePeriod = &d
		}
		if c.DNSConfig == nil {
			c.DNSConfig = &swarm.DNSConfig{}
		}
		t.ContainerSpec = &c
	}
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	p := swarm.RestartPolicy{}
	if t.RestartPolicy != nil {
		p = *t.RestartPolicy
	}
	if p.Condition == "" {
		p.Condition = swarm.RestartPolicyConditionAny
	}
	if p.Delay == nil {
		d := 5 * time.Second
		p.Delay = &d
	}
	if p.MaxAttempts == nil {
		p.MaxAttempts = new(uint64)
	}
	t.RestartPolicy = &p
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	update, rollback := cluster.UpdateOf(s.UpdateConfig), cluster.UpdateOf(s.RollbackConfig)
	s.UpdateConfig, s.RollbackConfig = &update, &rollback
	return s
}
