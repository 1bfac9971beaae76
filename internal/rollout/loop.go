package rollout

import (
	"context"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/pass"
	"github.com/skep-dev/skep/internal/store"
)

// Loop rolls out new specs. The leader runs one.
type Loop struct {
	Store   *store.Store
	Propose pass.Propose
	NewID   func() string // names new tasks
	Log     *slog.Logger
}

// Run blocks until ctx ends or leadership is lost (cluster.ErrNotLeader).
func (l *Loop) Run(ctx context.Context) error {
	began, memo := map[string]time.Time{}, pass.NewMemo()
	return pass.Loop{
		Name: "rollout", Store: l.Store, Log: l.Log,
		Kinds:   []store.Kind{store.KindService, store.KindTask, store.KindNode},
		Propose: l.Propose,
		Plan: func(now time.Time) (pass.Todo, time.Time) {
			v := l.Store.View()
			todo, again := Plan(now, v, began, memo)
			for id := range began {
				if v.Task(id) == nil {
					delete(began, id)
				}
			}
			pass.Number(todo, l.NewID)
			return todo, again
		},
	}.Run(ctx)
}
