package agent

import (
	"fmt"
	"math"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// LabelEnvTemplates marks an image whose own ENV values are templates: for a
// task they are expanded as those of --env are, which win over them.
const LabelEnvTemplates = "skep.env.templates"

// request turns a task into the container it is to be, with Docker's meaning of
// every field. What is not built is refused by name.
func request(t *cluster.WantedTask, img Image, nets map[string]*cluster.WantedNetwork, node *swarm.NodeDescription) (engine.CreateRequest, error) {
	req := engine.CreateRequest{Name: t.Name, Swarm: true}
	cs := t.Spec.ContainerSpec
	if err := refused(cs); err != nil {
		return req, err
	}
	cfg, err := config(t, img, factsOf(t, node))
	if err != nil {
		return req, err
	}
	host, err := hostConfig(t, factsOf(t, node))
	if err != nil {
		return req, err
	}
	cfg.ExposedPorts, host.PortBindings, err = ports(t.HostPorts)
	if err != nil {
		return req, err
	}
	mode, endpoints := attachments(t, nets)
	host.NetworkMode = mode
	req.Request = container.CreateRequest{Config: cfg, HostConfig: host, NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: endpoints}}
	return req, nil
}

func refused(cs *swarm.ContainerSpec) error {
	if p := cs.Privileges; p != nil && p.CredentialSpec != nil {
		return cluster.NotImplementedf("credential specs are Windows'")
	}
	for _, m := range cs.Mounts {
		if m.Type == mount.TypeCluster {
			return cluster.NotImplementedf("cluster volumes are not supported yet (mount at %s)", m.Target)
		}
	}
	return nil
}

func config(t *cluster.WantedTask, img Image, f *facts) (*container.Config, error) {
	cs := t.Spec.ContainerSpec
	env, err := f.env(cs.Env)
	if err != nil {
		return nil, err
	}
	if img.Labels[LabelEnvTemplates] == "true" {
		own, err := f.env(img.Env)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", cs.Image, err)
		}
		env = append(own, env...)
	}
	hostname, err := f.expand(cs.Hostname)
	if err != nil {
		return nil, fmt.Errorf("expanding hostname failed: %w", err)
	}
	c := &container.Config{
		Image: cs.Image, Env: env, Hostname: hostname, Labels: labels(t), User: cs.User, WorkingDir: cs.Dir,
		Tty: cs.TTY, OpenStdin: cs.OpenStdin, StopSignal: cs.StopSignal, StopTimeout: grace(t), Healthcheck: cs.Healthcheck,
		Cmd: cs.Args,
	}
	if len(cs.Command) > 0 {
		c.Entrypoint = cs.Command
	}
	return c, nil
}

func labels(t *cluster.WantedTask) map[string]string {
	all := map[string]string{}
	for k, v := range t.Spec.ContainerSpec.Labels {
		all[k] = v
	}
	all[cluster.LabelTask] = ""
	all[cluster.LabelTaskID] = t.ID
	all[cluster.LabelTaskName] = t.Name
	all[cluster.LabelNodeID] = t.NodeID
	all[cluster.LabelServiceID] = t.ServiceID
	all[cluster.LabelServiceName] = t.ServiceName
	return all
}

func hostConfig(t *cluster.WantedTask, f *facts) (*container.HostConfig, error) {
	cs := t.Spec.ContainerSpec
	mounts, err := f.mounts(cs.Mounts)
	if err != nil {
		return nil, err
	}
	if cs.OomScoreAdj < -1000 || cs.OomScoreAdj > 1000 {
		return nil, cluster.Invalidf("Invalid value %d, range for oom score adj is [-1000, 1000]", cs.OomScoreAdj)
	}
	h := &container.HostConfig{
		Mounts: mounts, GroupAdd: cs.Groups, ReadonlyRootfs: cs.ReadOnly, Init: cs.Init, Isolation: cs.Isolation,
		Sysctls: cs.Sysctls, CapAdd: cs.CapabilityAdd, CapDrop: cs.CapabilityDrop, ExtraHosts: extraHosts(cs.Hosts),
		SecurityOpt: securityOpts(cs.Privileges), OomScoreAdj: int(cs.OomScoreAdj), LogConfig: logConfig(t),
		Resources: resources(t.Spec.Resources),
	}
	h.Ulimits = cs.Ulimits
	if d := cs.DNSConfig; d != nil {
		h.DNS, h.DNSSearch, h.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	return h, nil
}

// extraHosts turns lines of hosts(5) into name:address.
func extraHosts(lines []string) []string {
	var all []string
	for _, l := range lines {
		fields := strings.Fields(l)
		for i := 1; i < len(fields); i++ {
			all = append(all, fields[i]+":"+fields[0])
		}
	}
	return all
}

func securityOpts(p *swarm.Privileges) []string {
	if p == nil {
		return nil
	}
	var opts []string
	if p.NoNewPrivileges {
		opts = append(opts, "no-new-privileges=true")
	}
	if s := p.SELinuxContext; s != nil {
		for name, v := range map[string]string{"user": s.User, "role": s.Role, "type": s.Type, "level": s.Level} {
			if v != "" {
				opts = append(opts, "label="+name+":"+v)
			}
		}
		if s.Disable {
			opts = append(opts, "label=disable")
		}
	}
	if s := p.Seccomp; s != nil {
		switch s.Mode {
		case swarm.SeccompModeUnconfined:
			opts = append(opts, "seccomp=unconfined")
		case swarm.SeccompModeCustom:
			opts = append(opts, "seccomp="+string(s.Profile))
		}
	}
	if p.AppArmor != nil && p.AppArmor.Mode == swarm.AppArmorModeDisabled {
		opts = append(opts, "apparmor=unconfined")
	}
	return opts
}

func logConfig(t *cluster.WantedTask) container.LogConfig {
	d := t.Spec.LogDriver
	if d == nil {
		d = t.LogDriver
	}
	if d == nil {
		return container.LogConfig{}
	}
	return container.LogConfig{Type: d.Name, Config: d.Options}
}

func resources(r *swarm.ResourceRequirements) container.Resources {
	var c container.Resources
	if r == nil {
		return c
	}
	if l := r.Limits; l != nil {
		c.Memory, c.NanoCPUs = l.MemoryBytes, l.NanoCPUs
		if l.Pids > 0 {
			pids := l.Pids
			c.PidsLimit = &pids
		}
	}
	if r.Reservations != nil {
		c.MemoryReservation = r.Reservations.MemoryBytes
	}
	if r.SwapBytes != nil {
		c.MemorySwap = *r.SwapBytes
		if c.MemorySwap >= 0 && c.Memory > 0 {
			c.MemorySwap = c.Memory + min(c.MemorySwap, math.MaxInt64-c.Memory)
		}
	}
	c.MemorySwappiness = r.MemorySwappiness
	return c
}

// ports turns host-mode ports into what the engine binds. One without a number
// is bound to any.
func ports(wanted []swarm.PortConfig) (network.PortSet, network.PortMap, error) {
	exposed, bindings := network.PortSet{}, network.PortMap{}
	for _, p := range wanted {
		port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(p.Protocol))
		if !ok || p.TargetPort == 0 || p.TargetPort > math.MaxUint16 || p.PublishedPort > math.MaxUint16 {
			return nil, nil, cluster.Invalidf("invalid port %d:%d/%s", p.PublishedPort, p.TargetPort, p.Protocol)
		}
		exposed[port] = struct{}{}
		b := network.PortBinding{}
		if p.PublishedPort != 0 {
			b.HostPort = fmt.Sprint(p.PublishedPort)
		}
		bindings[port] = append(bindings[port], b)
	}
	return exposed, bindings, nil
}

// attachments returns the network mode and the places in networks. A task
// without networks is in the host's bridge, as Docker's is.
func attachments(t *cluster.WantedTask, nets map[string]*cluster.WantedNetwork) (container.NetworkMode, map[string]*network.EndpointSettings) {
	mode, modeIsIngress := container.NetworkMode(network.NetworkDefault), true
	endpoints := map[string]*network.EndpointSettings{}
	for _, at := range t.Networks {
		n := nets[at.NetworkID]
		name := n.ID
		ep := &network.EndpointSettings{Aliases: at.Aliases}
		if n.Driver != overlay {
			name = n.Name // a network of the host's own
		} else if at.Addr.IsValid() {
			ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: at.Addr}
		}
		endpoints[name] = ep
		if modeIsIngress {
			mode, modeIsIngress = container.NetworkMode(name), n.Ingress
		}
	}
	if mode.IsHost() || mode.IsNone() {
		return mode, nil
	}
	return mode, endpoints
}
