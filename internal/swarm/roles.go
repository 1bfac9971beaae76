package swarm

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

// roles is the leader's loop that demotes: a manager that is to be a worker
// leaves the Raft group first, and only then gets a worker's certificate.
// (Promotion needs no loop: the node is told, renews its certificate and joins.)
type roles struct {
	store *store.Store
	raft  *raftlog.Log
	log   *slog.Logger
}

// rolesRetry is the wait after a demotion that was refused for the quorum's sake.
const rolesRetry = 2 * time.Second

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader).
func (r *roles) Run(ctx context.Context) error {
	changed, stop := r.store.Watch(store.KindNode)
	defer stop()
	for {
		var again <-chan time.Time
		err := r.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, cluster.ErrNotLeader):
			return err
		case err != nil:
			r.log.Warn("a demotion will be tried again", "err", err)
			again = time.After(rolesRetry)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass demotes whom it can.
func (r *roles) pass(ctx context.Context) error {
	v := r.store.View()
	if v.Cluster() == nil {
		return nil // not founded yet
	}
	var errs error
	for _, m := range r.raft.Members() {
		n := v.Node(m.ID)
		if n != nil && (n.Manager != nil || n.Spec.Role == api.NodeRoleManager) {
			continue
		}
		// A member nobody knows as a manager: its removal was half done.
		errs = errors.Join(errs, r.raft.RemoveServer(ctx, m.ID))
	}
	for _, n := range v.Nodes() {
		if n.Manager == nil || n.Spec.Role == api.NodeRoleManager {
			continue
		}
		if err := r.demote(ctx, n); err != nil && !errdefs.IsNotFound(err) {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

func (r *roles) demote(ctx context.Context, n *cluster.Node) error {
	if err := r.raft.RemoveServer(ctx, n.ID); err != nil {
		return err
	}
	next := *n
	next.Manager = nil
	if err := r.raft.Propose(ctx, store.UpdateNode(&next)); err != nil {
		return err
	}
	r.log.Info("manager was demoted", "node", n.ID)
	return nil
}
