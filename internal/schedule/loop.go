package schedule

import (
	"context"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// Loop places tasks. The leader runs one.
type Loop struct {
	Store   *store.Store
	Propose pass.Propose
	Log     *slog.Logger
}

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader). What
// runs where is read anew from the store at the start.
func (l *Loop) Run(ctx context.Context) error {
	counts := newLedger()
	return pass.Loop{
		Name: "schedule", Store: l.Store, Log: l.Log,
		Kinds:   []store.Kind{store.KindService, store.KindTask, store.KindNode},
		Propose: l.Propose,
		Plan: func(now time.Time) (pass.Todo, time.Time) {
			return counts.Plan(now, l.Store.View()), time.Time{}
		},
	}.Run(ctx)
}
