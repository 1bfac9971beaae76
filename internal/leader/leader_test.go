package leader

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

type bench struct {
	*Group
	leads    chan bool
	stepped  atomic.Int64
	running  atomic.Int64
	began    atomic.Int64
	die      chan error
	canLeave atomic.Bool
}

func newBench() *bench {
	b := &bench{leads: make(chan bool), die: make(chan error)}
	b.canLeave.Store(true)
	b.Group = &Group{Leadership: b.leads, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), StepDown: func() error {
		b.stepped.Add(1)
		if !b.canLeave.Load() {
			return errors.New("alone")
		}
		return nil
	}}
	return b
}

func (b *bench) loop(ctx context.Context) error {
	b.running.Add(1)
	b.began.Add(1)
	defer func() { b.running.Add(-1) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.die:
		if err != nil && err.Error() == "panic" {
			panic("as asked")
		}
		return err
	}
}

func TestLoopsFollowLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx, b.loop) }()
		expect := func(what string, running, began, stepped int64) {
			t.Helper()
			synctest.Wait()
			if b.running.Load() != running || b.began.Load() != began || b.stepped.Load() != stepped {
				t.Errorf("%s: running %d, began %d, stepped down %d; want %d, %d, %d", what, b.running.Load(), b.began.Load(), b.stepped.Load(), running, began, stepped)
			}
		}
		expect("at first", 0, 0, 0)
		b.leads <- true
		expect("leading", 1, 1, 0)
		b.leads <- true
		expect("a new term", 1, 2, 0)
		b.leads <- false
		expect("lost", 0, 2, 0)
		b.leads <- true
		b.die <- errors.New("dead")
		expect("a loop died", 0, 3, 1)
		b.leads <- false
		b.leads <- true
		b.die <- cluster.ErrNotLeader
		expect("a loop noticed first", 0, 4, 2)
		b.leads <- false
		b.leads <- true
		b.die <- nil
		expect("a loop ended on its own", 0, 5, 3)
		b.leads <- true
		b.canLeave.Store(false)
		b.die <- errors.New("panic")
		expect("a loop panicked and nobody else can lead", 0, 6, 4)
		time.Sleep(pause)
		expect("a moment later", 1, 7, 4)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		expect("at the end", 0, 7, 4)
	})
}
