package store

import (
	"bytes"
	"encoding/json"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// settleAllocation counts a new spec as allocated at once where the allocator
// would change nothing: it needs neither ports nor addresses, or the same ones as
// the spec before, which has them. That spares most services a second entry.
func settleAllocation(old, n *cluster.Service) {
	if old != nil && n.SpecVersion == old.SpecVersion {
		return
	}
	kept := old != nil && old.Allocated == old.SpecVersion && sameNeeds(old.Spec, n.Spec)
	if kept || needsNothing(n) {
		n.Allocated, n.AllocErr = n.SpecVersion, ""
	}
}

func needsNothing(s *cluster.Service) bool {
	return len(s.Ports) == 0 && len(s.VIPs) == 0 && len(s.Spec.TaskTemplate.Networks) == 0 &&
		(s.Spec.EndpointSpec == nil || len(s.Spec.EndpointSpec.Ports) == 0)
}

// sameNeeds compares the parts of two specs that ports and addresses are made for.
func sameNeeds(a, b *swarm.ServiceSpec) bool {
	type needs struct {
		Networks []swarm.NetworkAttachmentConfig
		Endpoint *swarm.EndpointSpec
	}
	x, err1 := json.Marshal(needs{a.TaskTemplate.Networks, a.EndpointSpec})
	y, err2 := json.Marshal(needs{b.TaskTemplate.Networks, b.EndpointSpec})
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
