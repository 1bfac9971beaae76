package allocate

import (
	"context"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// Loop gives out addresses and ports. The leader runs one.
type Loop struct {
	Store   *store.Store
	Propose pass.Propose
	Log     *slog.Logger
}

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader). What
// is held is read anew from the store at the start.
func (l *Loop) Run(ctx context.Context) error {
	held := newLedger()
	return pass.Loop{
		Name: "allocate", Store: l.Store, Log: l.Log,
		Kinds:   []store.Kind{store.KindCluster, store.KindNetwork, store.KindService, store.KindTask, store.KindNode},
		Propose: l.Propose,
		Plan: func(time.Time) (pass.Todo, time.Time) {
			todo, ready := held.Plan(l.Store.View())
			if len(ready) > 0 {
				l.Store.ObserveAll(ready)
			}
			return todo, time.Time{}
		},
	}.Run(ctx)
}
