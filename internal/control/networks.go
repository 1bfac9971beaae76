package control

import (
	"context"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func (a *API) networkMethods() {
	method(a, "networks", a.networks)
	method(a, "network", a.network)
	method(a, "network.create", a.createNetwork)
	method(a, "network.remove", a.removeNetwork)
}

// swarmNetwork returns a network that every swarm has: the ingress network, or
// the stand-in for each host's own network of that name.
func swarmNetwork(name, driver string, ingress bool) *cluster.Network {
	spec := &swarm.NetworkSpec{
		Annotations:         swarm.Annotations{Name: name, Labels: map[string]string{}},
		DriverConfiguration: &swarm.Driver{Name: driver}, Ingress: ingress, Scope: "swarm",
	}
	if !ingress {
		spec.Labels[predefined] = "true"
	}
	return &cluster.Network{ID: cluster.NewID(), Spec: spec}
}

func isPredefined(n *cluster.Network) bool { return n.Spec.Labels[predefined] != "" }

// Networks lists the networks of scope swarm. Those that stand for a host's own
// are not among them.
func (a *API) Networks(ctx context.Context) ([]network.Inspect, error) {
	return read(ctx, a, "networks", none{}, a.networks)
}

func (a *API) networks(context.Context, none) ([]network.Inspect, error) {
	var out []network.Inspect
	for _, n := range a.Store.View().Networks() {
		if !n.PendingDelete && !isPredefined(n) {
			out = append(out, networkAPI(n))
		}
	}
	return out, nil
}

// Network returns one network of scope swarm, also one that stands for a host's
// own: services refer to those by its id.
func (a *API) Network(ctx context.Context, ref string) (network.Inspect, error) {
	return read(ctx, a, "network", refReq{ref}, a.network)
}

func (a *API) network(_ context.Context, r refReq) (network.Inspect, error) {
	n, err := findNetwork(a.Store.View(), r.Ref)
	if err != nil {
		return network.Inspect{}, err
	}
	return networkAPI(n), nil
}

// CreateNetwork makes an overlay network and returns its id.
func (a *API) CreateNetwork(ctx context.Context, req network.CreateRequest) (string, error) {
	return write(ctx, a, "network.create", req, a.createNetwork)
}

func (a *API) createNetwork(ctx context.Context, r network.CreateRequest) (string, error) {
	if err := checkName(r.Name); err != nil {
		return "", err
	}
	if err := checkLabels(r.Labels); err != nil {
		return "", err
	}
	if err := checkLabels(r.Options); err != nil {
		return "", err
	}
	v := a.Store.View()
	if v.NetworkByName(r.Name) != nil {
		return "", cluster.Conflictf("network with name %s already exists", r.Name)
	}
	for _, n := range v.Networks() {
		if r.Ingress && n.Spec.Ingress && !n.PendingDelete {
			return "", alreadyExists("ingress network (%s) is already present", n.ID)
		}
	}
	if r.Ingress && r.Attachable {
		return "", invalid("the ingress network cannot be attachable")
	}
	if err := unbuiltInNetwork(&r); err != nil {
		return "", err
	}
	ipam, err := ipamOf(r.IPAM)
	if err != nil {
		return "", err
	}
	n := &cluster.Network{ID: cluster.NewID(), Spec: &swarm.NetworkSpec{
		Annotations:         swarm.Annotations{Name: r.Name, Labels: r.Labels},
		DriverConfiguration: &swarm.Driver{Name: "overlay", Options: r.Options},
		Internal:            r.Internal, Attachable: r.Attachable, Ingress: r.Ingress, IPAMOptions: ipam, Scope: "swarm",
	}}
	err = a.propose(ctx, store.CreateNetwork(n))
	if errdefs.IsAlreadyExists(err) {
		return "", cluster.Conflictf("network with name %s already exists", r.Name)
	}
	return n.ID, err
}

// ipamOf validates the addresses a user wants for a network.
func ipamOf(in *network.IPAM) (*swarm.IPAMOptions, error) {
	if in == nil || len(in.Config) == 0 {
		return nil, nil
	}
	if err := refuse(
		absent{"a network of several subnets (--subnet)", len(in.Config) > 1},
		absent{"a reserved address (--aux-address)", len(in.Config[0].AuxAddress) > 0},
		absent{"an IPAM option (--ipam-opt)", len(in.Options) > 0},
	); err != nil {
		return nil, err
	}
	c := in.Config[0]
	switch {
	case !c.Subnet.IsValid():
		if c.Gateway.IsValid() || c.IPRange.IsValid() {
			return nil, cluster.Invalidf("every ip-range or gateway must have a corresponding subnet")
		}
		return nil, nil
	case !c.Subnet.Addr().Is4():
		return nil, cluster.NotImplementedf("IPv6 in a swarm's network (--subnet) is not built yet")
	case c.Subnet.Bits() < 8 || c.Subnet.Bits() > 29:
		return nil, cluster.Invalidf("the subnet %s must have a prefix of 8 to 29 bits", c.Subnet)
	case c.Subnet.Addr().IsLoopback() || c.Subnet.Addr().IsMulticast() || c.Subnet.Addr().IsUnspecified():
		return nil, cluster.Invalidf("the subnet %s cannot be a network's", c.Subnet)
	case c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway):
		return nil, cluster.Invalidf("no matching subnet for gateway %s", c.Gateway)
	case c.IPRange.IsValid() && !within(c.IPRange, c.Subnet):
		return nil, cluster.Invalidf("no matching subnet for range %s", c.IPRange)
	}
	return &swarm.IPAMOptions{
		Driver:  swarm.Driver{Name: "default"},
		Configs: []swarm.IPAMConfig{{Subnet: c.Subnet.Masked(), Range: c.IPRange, Gateway: c.Gateway}},
	}, nil
}

func within(p, in netip.Prefix) bool { return p.Bits() >= in.Bits() && in.Contains(p.Addr()) }

// RemoveNetwork removes a network that nothing is to use any more. It is gone
// for users at once, and for good when its last task has ended.
func (a *API) RemoveNetwork(ctx context.Context, ref string) error {
	_, err := write(ctx, a, "network.remove", refReq{ref}, a.removeNetwork)
	return err
}

func (a *API) removeNetwork(ctx context.Context, r refReq) (none, error) {
	return none{}, a.edit(ctx, func(v store.View) ([]store.Change, error) { return removal(v, r.Ref) })
}

// removal returns the changes that remove a network.
func removal(v store.View, ref string) ([]store.Change, error) {
	n, err := findNetwork(v, ref)
	if err != nil {
		return nil, err
	}
	if isPredefined(n) {
		return nil, cluster.Deniedf("rpc error: code = PermissionDenied desc = %s is a pre-defined network and cannot be removed", n.Spec.Name)
	}
	for _, s := range v.Services() {
		if n.Spec.Ingress && cluster.IngressPorts(s.Spec) {
			return nil, precondition("ingress network cannot be removed because service %s depends on it", s.ID)
		}
		for _, at := range s.Spec.TaskTemplate.Networks {
			if at.Target == n.ID {
				return nil, precondition("network %s is in use by service %s", n.ID, s.ID)
			}
		}
	}
	ending := false
	for _, t := range v.TasksIn(n.ID) {
		if t.Active() {
			return nil, precondition("network %s is in use by task %s", n.ID, t.ID)
		}
		ending = ending || !t.Status.State.Terminal()
	}
	if !ending {
		return []store.Change{store.DeleteNetwork(n)}, nil
	}
	gone := *n
	gone.PendingDelete = true
	return []store.Change{store.UpdateNetwork(&gone)}, nil
}
