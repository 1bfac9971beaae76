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
		Kinds:   []store.Kind{store.KindCluster, store.KindNetwork, store.KindService, store.KindTask, store.KindNode},
		Propose: l.Propose,
		Plan:    func(now time.Time) (pass.Todo, time.Time) { return mem.Plan(now, l.Store.View()) },
		Failed:  func() { mem = newMemory() }, // what was not written must be looked at again
	}.Run(ctx)
}
