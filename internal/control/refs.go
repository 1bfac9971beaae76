package control

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// predefined marks the networks that stand for a host's own of the same name.
const predefined = "com.docker.swarm.predefined"

// resolveNetworks replaces the networks that a spec refers to by their ids.
func resolveNetworks(v store.View, s *swarm.ServiceSpec) error {
	t := &s.TaskTemplate
	t.Networks = slices.Clone(t.Networks)
	seen := map[string]bool{}
	for i := range t.Networks {
		n, err := findNetwork(v, t.Networks[i].Target)
		if err != nil {
			return err
		}
		if n.Spec.Ingress {
			return invalid("Service cannot be explicitly attached to the ingress network %q", n.Spec.Name)
		}
		if seen[n.ID] {
			return invalid("the service is attached to the network %q more than once", n.Spec.Name)
		}
		seen[n.ID] = true
		t.Networks[i].Target = n.ID
	}
	return nil
}

// checkPayloads makes sure that the secrets and configs a container refers to
// are there and do not get into each other's way.
func checkPayloads(v store.View, c *swarm.ContainerSpec) error {
	if c == nil {
		return nil
	}
	secrets, configs := payloads{noun: "secret"}, payloads{noun: "config"}
	for _, r := range c.Secrets {
		if r == nil || r.SecretID == "" || r.SecretName == "" {
			return invalid("malformed secret reference")
		}
		if r.File == nil || r.File.Name == "" {
			return invalid("malformed file secret reference, invalid secret target")
		}
		if err := secrets.add(r.SecretName, r.File.Name, v.Secret(r.SecretID) != nil); err != nil {
			return err
		}
	}
	for _, r := range c.Configs {
		if r == nil || r.ConfigID == "" || r.ConfigName == "" {
			return invalid("malformed config reference")
		}
		if r.File != nil && r.Runtime != nil {
			return cluster.Invalidf("invalid Config: cannot set both File and Runtime")
		}
		target := ""
		if r.File != nil {
			target = r.File.Name
		}
		if target == "" && r.Runtime == nil {
			return invalid("malformed file config reference, invalid config target")
		}
		if err := configs.add(r.ConfigName, target, v.Config(r.ConfigID) != nil); err != nil {
			return err
		}
	}
	if err := secrets.missing(); err != nil {
		return err
	}
	return configs.missing()
}

// payloads gathers the references to secrets or configs of one container.
type payloads struct {
	noun   string
	byFile map[string]string
	absent []string
}

func (p *payloads) add(name, target string, there bool) error {
	if !there {
		p.absent = append(p.absent, name)
	}
	if target == "" {
		return nil
	}
	if other, taken := p.byFile[target]; taken {
		return invalid("%s references '%s' and '%s' have a conflicting target: '%s'", p.noun, other, name, target)
	}
	if p.byFile == nil {
		p.byFile = map[string]string{}
	}
	p.byFile[target] = name
	return nil
}

func (p *payloads) missing() error {
	switch len(p.absent) {
	case 0:
		return nil
	case 1:
		return invalid("%s not found: %s", p.noun, p.absent[0])
	}
	return invalid("%ss not found: %s", p.noun, strings.Join(p.absent, ", "))
}

// checkPortConflicts refuses a published port that another service has. Host
// ports of two services may be the same: they can run on different nodes.
func checkPortConflicts(v store.View, spec *swarm.ServiceSpec, self *cluster.Service) error {
	if spec.EndpointSpec == nil || len(spec.EndpointSpec.Ports) == 0 {
		return nil
	}
	for _, s := range v.Services() {
		if self != nil && s.ID == self.ID {
			continue
		}
		ports := s.Ports
		if s.Spec.EndpointSpec != nil {
			ports = append(slices.Clip(ports), s.Spec.EndpointSpec.Ports...)
		}
		for _, p := range spec.EndpointSpec.Ports {
			if err := portConflict(p, s, ports); err != nil {
				return err
			}
		}
	}
	return nil
}

func portConflict(p swarm.PortConfig, s *cluster.Service, ports []swarm.PortConfig) error {
	for _, q := range ports {
		if p.PublishedPort == 0 || p.PublishedPort != q.PublishedPort || p.Protocol != q.Protocol {
			continue
		}
		if !cluster.HostPort(q) {
			return invalid("port '%d' is already in use by service '%s' (%s) as an ingress port", p.PublishedPort, s.Spec.Name, s.ID)
		}
		if !cluster.HostPort(p) {
			return invalid("port '%d' is already in use by service '%s' (%s) as a host-published port", p.PublishedPort, s.Spec.Name, s.ID)
		}
	}
	return nil
}

// usersOf lists the names of the services whose containers refer to something.
func usersOf(v store.View, refers func(*swarm.ContainerSpec) bool) []string {
	var out []string
	for _, s := range v.Services() {
		if c := s.Spec.TaskTemplate.ContainerSpec; c != nil && refers(c) {
			out = append(out, s.Spec.Name)
		}
	}
	slices.Sort(out)
	return out
}

func inUse(noun, name string, users []string) error {
	switch len(users) {
	case 0:
		return nil
	case 1:
		return invalid("%s '%s' is in use by the following service: %s", noun, name, users[0])
	}
	return invalid("%s '%s' is in use by the following services: %s", noun, name, strings.Join(users, ", "))
}
