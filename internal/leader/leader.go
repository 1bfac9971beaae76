// Package leader runs the loops that only the leader may run, as one group that
// lives and dies with leadership. It knows nothing of what they do. swarm
// runs one Group on every manager.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/cluster"
)

// pause keeps a loop that dies at once from spinning.
const pause = time.Second

// Loop is leader-only work. It ends, with nil, when its context ends, and may
// return cluster.ErrNotLeader when it finds leadership gone first.
type Loop func(ctx context.Context) error

// Group is what Run needs. StepDown hands leadership to another manager; it is
// called when a loop has died, so that another manager does the work.
type Group struct {
	// Leadership says true when this manager begins to lead and false when it does
	// no more; a second true is a new beginning.
	Leadership <-chan bool
	StepDown   func() error
	Log        *slog.Logger
}

// Run starts all loops whenever this manager begins to lead, ends them when it
// does no more, and returns when ctx has ended and all of them with it. No loop
// of one term runs beside one of the next.
func (g *Group) Run(ctx context.Context, loops ...Loop) error {
	leads := false
	for {
		if !leads {
			select {
			case <-ctx.Done():
				return nil
			case leads = <-g.Leadership:
			}
			continue
		}
		var done bool
		if leads, done = g.term(ctx, loops); done {
			return nil
		}
	}
}

// term runs the loops for one term of leadership, and says whether the next has
// begun already and whether ctx has ended.
func (g *Group) term(ctx context.Context, loops []Loop) (leads, done bool) {
	g.Log.Info("leading: the loops begin", "loops", len(loops))
	ctx2, cancel := context.WithCancel(ctx)
	defer cancel()
	group, term := errgroup.WithContext(ctx2)
	for _, loop := range loops {
		group.Go(func() error { return run(term, loop) })
	}
	select {
	case leads = <-g.Leadership:
	case <-term.Done(): // ctx has ended, or a loop has died
	}
	cancel()
	err := group.Wait()
	if ctx.Err() != nil {
		return false, true
	}
	g.Log.Info("the loops of this term have ended", "err", err)
	if err == nil || leads {
		return leads, false
	}
	if !errors.Is(err, cluster.ErrNotLeader) {
		g.Log.Error("a loop has died; leadership is given up", "err", err)
	}
	// Also after ErrNotLeader: a refused write does not mean that leadership was
	// lost, and if it was not, no new term would be told.
	if err := g.StepDown(); err == nil || errors.Is(err, cluster.ErrNotLeader) {
		return false, false
	}
	// Nobody else can lead: begin anew here rather than not at all.
	g.Log.Warn("leadership cannot be given up; the loops begin anew", "err", err)
	select {
	case leads = <-g.Leadership:
		return leads, false
	case <-time.After(pause):
		return true, false
	case <-ctx.Done():
		return false, true
	}
}

// run turns a loop that ends on its own, or panics, into an error: while
// leadership lasts no loop may be missing.
func run(ctx context.Context, loop Loop) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a loop panicked: %v", p)
		}
	}()
	err = loop(ctx)
	if err == nil && ctx.Err() == nil {
		return errors.New("a loop ended on its own")
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
