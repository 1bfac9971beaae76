package services

import (
	"context"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// Loop keeps the wanted tasks in being. The leader runs one.
type Loop struct {
	Store   *store.Store
	Propose pass.Propose
	NewID   func() string // names new tasks
	Log     *slog.Logger
}

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader).
func (l *Loop) Run(ctx context.Context) error {
	memo := pass.NewMemo()
	return pass.Loop{
		Name: "services", Store: l.Store, Log: l.Log,
		Kinds:   []store.Kind{store.KindService, store.KindTask, store.KindNode},
		Propose: l.Propose,
		Plan: func(now time.Time) (pass.Todo, time.Time) {
			todo, again := Plan(now, l.Store.View(), memo)
			pass.Number(todo, l.NewID)
			return todo, again
		},
	}.Run(ctx)
}
