package swarm

import (
	"context"
	"fmt"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// Times of leaving.
const (
	goodbyeWait = 4 * time.Second  // for the leader to hear of it
	cleanWait   = 60 * time.Second // for tasks to stop
)

// Leave takes this host out of its swarm: its tasks are removed, and all that
// it knew of the swarm. A manager needs force.
func (n *Node) Leave(ctx context.Context, force bool) error {
	return n.do(ctx, func(run context.Context) error { return n.leave(run, force) })
}

func (n *Node) leave(run context.Context, force bool) error {
	m := n.cur.Load()
	if m == nil {
		return errNoSwarm
	}
	mgr := m.manager.Load()
	if mgr != nil && !force {
		return mgr.mayNotLeave()
	}
	m.goodbye(run, mgr)
	n.end(m)
	ctx, cancel := context.WithTimeout(run, cleanWait)
	defer cancel()
	if err := m.agent.Leave(ctx); err != nil {
		n.cfg.Log.Warn("something of the swarm is left on this host", "err", err)
	}
	n.cur.Store(nil)
	return wipe(n.cfg.Dir)
}

// goodbye tells the leader, if there is one to be told: the node is down at once
// and, if it was a manager, no dead weight in the Raft group.
func (m *member) goodbye(ctx context.Context, mgr *manager) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeWait)
	defer cancel()
	if mgr != nil {
		if len(mgr.raft.Members()) < 2 {
			return
		}
		if mgr.raft.Leading() {
			if err := mgr.raft.StepDown(); err != nil {
				m.cfg.Log.Warn("leadership was not handed over", "err", err)
			}
		}
	}
	if err := m.client.Leave(ctx); err != nil {
		m.cfg.Log.Warn("the swarm could not be told that this node leaves", "err", err)
	}
}

// mayNotLeave says, in Docker's words, why a manager should not leave.
func (mgr *manager) mayNotLeave() error {
	msg := "You are attempting to leave the swarm on a node that is participating as a manager. "
	if id, _ := mgr.raft.Leader(); id != "" {
		reachable, unreachable := 0, 0
		for _, m := range mgr.raft.Members() {
			if m.Reachable || !mgr.raft.Leading() {
				reachable++ // only the leader knows better
			} else {
				unreachable++
			}
		}
		switch {
		case reachable == 1 && unreachable == 0:
			return cluster.Unavailablef("%s", msg+"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message.")
		case reachable-2 <= unreachable:
			msg += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, reachable+unreachable)
		}
	}
	return cluster.Unavailablef("%s", msg+"The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.")
}
