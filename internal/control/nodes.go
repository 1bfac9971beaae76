package control

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

type removeNode struct {
	Ref   string
	Force bool
}

func (a *API) nodeMethods() {
	method(a, "nodes", a.nodes)
	method(a, "node", a.node)
	method(a, "node.update", a.updateNode)
	method(a, "node.remove", a.removeNode)
}

// Nodes lists the swarm's hosts. While there is no leader it fails: who is
// there is not known then.
func (a *API) Nodes(ctx context.Context, f Filters) ([]swarm.Node, error) {
	return write(ctx, a, "nodes", listReq{f}, a.nodes)
}

func (a *API) nodes(_ context.Context, r listReq) ([]swarm.Node, error) {
	f := r.Filters
	if err := filters.Check(f, "id", "label", "node.label", "name", "role", "membership"); err != nil {
		return nil, err
	}
	for role := range f["role"] {
		if role != string(swarm.NodeRoleManager) && role != string(swarm.NodeRoleWorker) {
			return nil, cluster.Invalidf("Invalid role filter: '%s'", role)
		}
	}
	for m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return nil, cluster.Invalidf("Invalid membership filter: '%s'", m)
		}
	}
	members := a.members()
	var out []swarm.Node
	for _, n := range a.Store.View().Nodes() {
		var engine map[string]string
		if n.Description != nil {
			engine = n.Description.Engine.Labels
		}
		if filters.Prefixed(f, "id", n.ID) && filters.Prefixed(f, "name", hostname(n), n.Spec.Name) && filters.Exact(f, "role", string(n.Spec.Role)) &&
			filters.Exact(f, "membership", "accepted") && filters.Labels(f, "label", engine) && filters.Labels(f, "node.label", n.Spec.Labels) {
			out = append(out, nodeAPI(n, members))
		}
	}
	return out, nil
}

func (a *API) members() map[string]raftlog.Member {
	out := map[string]raftlog.Member{}
	for _, m := range a.Raft.Members() {
		out[m.ID] = m
	}
	return out
}

// Node returns one of the swarm's hosts.
func (a *API) Node(ctx context.Context, ref string) (swarm.Node, error) {
	return read(ctx, a, "node", refReq{ref}, a.node)
}

func (a *API) node(_ context.Context, r refReq) (swarm.Node, error) {
	n, err := findNode(a.Store.View(), r.Ref)
	if err != nil {
		return swarm.Node{}, err
	}
	return nodeAPI(n, a.members()), nil
}

// UpdateNode writes what users want of a node. A manager that the group cannot
// do without is not demoted.
func (a *API) UpdateNode(ctx context.Context, ref string, version uint64, spec swarm.NodeSpec) error {
	_, err := write(ctx, a, "node.update", updateReq[swarm.NodeSpec]{ref, version, spec}, a.updateNode)
	return err
}

func (a *API) updateNode(ctx context.Context, r updateReq[swarm.NodeSpec]) (none, error) {
	return none{}, a.edit(ctx, func(v store.View) ([]store.Change, error) {
		n, err := a.nodeUpdate(ctx, v, r)
		if err != nil {
			return nil, err
		}
		return []store.Change{store.UpdateNode(n)}, nil
	})
}

// nodeUpdate returns a node as a user's write makes it.
func (a *API) nodeUpdate(ctx context.Context, v store.View, r updateReq[swarm.NodeSpec]) (*cluster.Node, error) {
	old, err := findNode(v, r.Ref)
	if err != nil {
		return nil, err
	}
	spec := r.Spec
	if spec.Role == "" {
		spec.Role = old.Spec.Role
	}
	if spec.Role != swarm.NodeRoleManager && spec.Role != swarm.NodeRoleWorker {
		return nil, cluster.Invalidf("invalid Role: %q", string(spec.Role))
	}
	if spec.Availability == "" {
		spec.Availability = old.Spec.Availability
	}
	if spec.Availability, err = cluster.ParseAvailability(spec.Availability); err != nil {
		return nil, err
	}
	if err := checkLabels(spec.Labels); err != nil {
		return nil, err
	}
	if len(spec.Name) > 255 {
		return nil, invalid("name must be 255 characters or fewer")
	}
	if stale(r.Version, old.SpecVersion, old.Version) {
		return nil, outOfSequence()
	}
	if old.Spec.Role == swarm.NodeRoleManager && spec.Role == swarm.NodeRoleWorker {
		if err := a.checkDemotion(ctx, v, old); err != nil {
			return nil, err
		}
	}
	n := *old
	n.Spec = &spec
	return &n, nil
}

func (a *API) checkDemotion(ctx context.Context, v store.View, n *cluster.Node) error {
	managers := 0
	for _, o := range v.Nodes() {
		if o.Spec.Role == swarm.NodeRoleManager {
			managers++
		}
	}
	if managers == 1 {
		return precondition("attempting to demote the last manager of the swarm")
	}
	if _, member := a.members()[n.ID]; !member {
		return cluster.NotFoundf("rpc error: code = NotFound desc = can't find manager in raft memberlist")
	}
	return a.Raft.CheckRemove(ctx, n.ID)
}

// RemoveNode forgets a node; its certificate is refused until it ends.
func (a *API) RemoveNode(ctx context.Context, ref string, force bool) error {
	_, err := write(ctx, a, "node.remove", removeNode{ref, force}, a.removeNode)
	return err
}

func (a *API) removeNode(ctx context.Context, r removeNode) (none, error) {
	return none{}, a.edit(ctx, func(v store.View) ([]store.Change, error) {
		n, err := findNode(v, r.Ref)
		if err != nil {
			return nil, err
		}
		if _, member := a.members()[n.ID]; member || n.Manager != nil {
			return nil, precondition("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		}
		if n.Status.State == swarm.NodeStateReady && !r.Force {
			return nil, precondition("node %s is not down and can't be removed", n.ID)
		}
		c := *v.Cluster()
		now := time.Now()
		removed := map[string]time.Time{n.ID: now.Add(c.Spec.CAConfig.NodeCertExpiry + time.Hour)}
		for id, until := range c.RemovedNodes {
			if until.After(now) {
				removed[id] = until
			}
		}
		c.RemovedNodes = removed
		return []store.Change{store.DeleteNode(n), store.PutCluster(&c)}, nil
	})
}
