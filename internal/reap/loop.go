package reap

import (
	"context"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// Loop forgets what is over. The leader runs one.
type Loop struct {
	Store   *store.Store
	Propose pass.Propose
	Log     *slog.Logger
}

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader).
func (l *Loop) Run(ctx context.Context) error {
	mem := newMemory()
	return pass.Loop{
		Name: "reap", Store: l.Store, Log: l.Log,
		Kinds: []store.Kind{store.KindCluster, store.KindNetwork, store.KindService, store.KindTask, store.KindNode},
		Once: func(ctx context.Context, now time.Time) (time.Time, error) {
			todo, again := mem.Plan(now, l.Store.View())
			err := pass.Apply(ctx, l.Propose, todo)
			if err != nil {
				mem = newMemory() // what was not written must be looked at again
			}
			return again, err
		},
	}.Run(ctx)
}
