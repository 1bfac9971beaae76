package swarm

import (
	"context"
	"slices"
	"strings"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/control"
	"github.com/skep-dev/skep/internal/dispatch"
)

// Control returns the swarm as users see and change it. On a node that is no
// manager it is errdefs.ErrUnavailable in Docker's words.
func (n *Node) Control() (*control.API, error) {
	mgr, err := n.manager()
	if err != nil {
		return nil, err
	}
	return mgr.control, nil
}

// Info is the Swarm section of the daemon's /info. It never waits.
func (n *Node) Info(ctx context.Context) api.Info {
	m := n.cur.Load()
	if m == nil {
		return api.Info{LocalNodeState: api.LocalNodeStateInactive}
	}
	st, session, err := m.snapshot()
	info := api.Info{
		NodeID: st.NodeID, NodeAddr: st.Advertise.Addr().String(), LocalNodeState: api.LocalNodeStateActive,
		RemoteManagers: peers(st.Managers),
	}
	switch {
	case ended(m.done):
		info.LocalNodeState = api.LocalNodeStateError
	case session.Leader == "" && st.Joined == "" && m.boot == nil:
		info.LocalNodeState = api.LocalNodeStatePending
	}
	if err != nil {
		info.Error = err.Error()
	}
	if mgr := m.manager.Load(); mgr != nil {
		mgr.info(ctx, &info)
	}
	return info
}

func ended(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// info adds what only managers know.
func (mgr *manager) info(ctx context.Context, info *api.Info) {
	info.ControlAvailable = true
	if id, _ := mgr.raft.Leader(); id == "" {
		info.Error = dispatch.ErrNoLeader.Error()
		return
	}
	info.Error = ""
	info.Nodes, info.Managers = mgr.control.Counts()
	if s, err := mgr.control.Seen(ctx); err == nil {
		info.Cluster = &s.ClusterInfo
	}
	var all []dispatch.Manager
	for _, m := range mgr.raft.Members() {
		all = append(all, dispatch.Manager{NodeID: m.ID, Addr: m.Addr})
	}
	info.RemoteManagers = peers(all)
}

func peers(in []dispatch.Manager) []api.Peer {
	out := make([]api.Peer, 0, len(in))
	for _, m := range in {
		out = append(out, api.Peer{NodeID: m.NodeID, Addr: m.Addr})
	}
	slices.SortFunc(out, func(a, b api.Peer) int { return strings.Compare(a.Addr, b.Addr) })
	return out
}
