package control

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// Everything that users may ask for and that has no effect yet is refused here,
// by the name they know it under.

// absent is an option and whether a request uses it.
type absent struct {
	name string
	used bool
}

func refuse(options ...absent) error {
	for _, o := range options {
		if o.used {
			return cluster.NotImplementedf("%s is not built yet", o.name)
		}
	}
	return nil
}

func unbuiltInSwarm(s swarm.Spec) error {
	return refuse(
		absent{"autolock (--autolock)", s.EncryptionConfig.AutoLockManagers},
		absent{"an external CA (--external-ca)", len(s.CAConfig.ExternalCAs) > 0},
		absent{"the rotation of the root CA (swarm ca --rotate)", s.CAConfig.ForceRotate != 0},
		absent{"a root CA of one's own (--ca-cert, --ca-key)", s.CAConfig.SigningCACert != "" || s.CAConfig.SigningCAKey != ""},
	)
}

func unbuiltInService(s *swarm.ServiceSpec) error {
	t := &s.TaskTemplate
	options := []absent{
		{"the service mode replicated-job (--mode)", s.Mode.ReplicatedJob != nil},
		{"the service mode global-job (--mode)", s.Mode.GlobalJob != nil},
		{"the runtime plugin", t.Runtime == swarm.RuntimePlugin || t.PluginSpec != nil},
	}
	if r := t.Resources; r != nil {
		options = append(options,
			absent{"the reservation of generic resources (--generic-resource)", r.Reservations != nil && len(r.Reservations.GenericResources) > 0},
		)
	}
	if c := t.ContainerSpec; c != nil {
		options = append(options, unbuiltInContainer(c)...)
	}
	for _, n := range t.Networks {
		options = append(options, absent{"the driver option of a service's network (--network driver-opt)", len(n.DriverOpts) > 0})
	}
	return refuse(options...)
}

func unbuiltInContainer(c *swarm.ContainerSpec) []absent {
	options := []absent{
		{"isolation other than default (--isolation)", c.Isolation != "" && c.Isolation != container.IsolationDefault},
	}
	if p := c.Privileges; p != nil {
		options = append(options,
			absent{"a credential spec (--credential-spec)", p.CredentialSpec != nil},
			absent{"an SELinux context of a service", p.SELinuxContext != nil},
		)
	}
	for _, m := range c.Mounts {
		options = append(options,
			absent{"a mount of type " + string(m.Type) + " (--mount)",
				m.Type == mount.TypeNamedPipe || m.Type == mount.TypeCluster || m.Type == mount.TypeImage},
		)
	}
	for _, ref := range c.Configs {
		options = append(options, absent{"a config for the runtime", ref != nil && ref.Runtime != nil})
	}
	return options
}

func unbuiltInNetwork(r *network.CreateRequest) error {
	_, encrypted := r.Options["encrypted"]
	return refuse(
		absent{"an encrypted network (--opt encrypted)", encrypted},
		absent{"IPv6 in a swarm's network (--ipv6)", r.EnableIPv6 != nil && *r.EnableIPv6},
		absent{"a swarm's network without IPv4 (--ipv4=false)", r.EnableIPv4 != nil && !*r.EnableIPv4},
		absent{"a network's configuration from another (--config-from, --config-only)", r.ConfigOnly || r.ConfigFrom != nil && r.ConfigFrom.Network != ""},
		absent{"the driver " + r.Driver + " for a swarm's network (--driver)", r.Driver != "" && r.Driver != "overlay"},
		absent{"an IPAM driver (--ipam-driver)", r.IPAM != nil && r.IPAM.Driver != "" && r.IPAM.Driver != "default"},
	)
}

func unbuiltInPayload(s *swarm.SecretSpec) error {
	return refuse(
		absent{"a secret driver (--driver)", s.Driver != nil},
		absent{"the template driver (--template-driver)", s.Templating != nil},
	)
}
