package control

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Demotions takes managers whose users want them to be workers out of the Raft
// group. The leader runs it. A leader that is demoted hands leadership over; the
// next one removes it. (A promoted node becomes a member by asking to: dispatch.)
type Demotions struct {
	Store *store.Store
	// Propose and Remove are raftlog.Log's Propose and RemoveServer.
	Propose func(ctx context.Context, changes ...store.Change) error
	Remove  func(ctx context.Context, nodeID string) error
	Log     *slog.Logger
}

// retryDemotion is how long it waits when a manager cannot be spared now.
const retryDemotion = 2 * time.Second

// Run makes a pass at the start and after every change of a node until ctx ends.
func (d *Demotions) Run(ctx context.Context) error {
	wake, end := d.Store.Watch(store.KindNode)
	defer end()
	for {
		err := d.pass(ctx)
		var again <-chan time.Time
		switch {
		case errors.Is(err, cluster.ErrNotLeader):
			return err
		case err != nil:
			d.Log.Warn("a demotion will be retried", "err", err)
			again = time.After(retryDemotion)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
	}
}

func (d *Demotions) pass(ctx context.Context) error {
	for _, n := range d.Store.View().Nodes() {
		if n.Manager == nil || n.Spec.Role != swarm.NodeRoleWorker {
			continue
		}
		if err := d.Remove(ctx, n.ID); err != nil {
			return err
		}
		done := *n
		done.Manager = nil
		switch err := d.Propose(ctx, store.UpdateNode(&done)); {
		case err == nil:
			d.Log.Info("a manager was demoted", "node", n.ID)
		case errors.Is(err, cluster.ErrStale), errdefs.IsNotFound(err):
			return nil // it has changed: the wake-up for that is there already
		default:
			return err
		}
	}
	return nil
}
