// Package pass drives the loops that only the leader runs: wake, plan, write,
// wait. It owns when a pass is made and how its writes become log entries; what
// is written is each loop's own plan. allocate, services, rollout, schedule and
// reap call it; it knows none of them.
package pass

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Propose writes one log entry: all changes or none. It returns when the entry
// is applied to this manager's own store. Its errors are cluster.ErrStale (look
// again and retry) and cluster.ErrNotLeader (give up), or passing ones.
type Propose func(ctx context.Context, changes ...store.Change) error

// Todo is what a plan wants written: groups of changes, each made whole or not
// at all. Groups are independent of each other.
type Todo [][]store.Change

// Add appends a group.
func (t *Todo) Add(group ...store.Change) { *t = append(*t, group) }

// MaxChanges bounds a log entry: one long entry would hold up every other
// writer, and a single stale object would refuse it all.
const MaxChanges = 500

// maxSplits bounds how often one Apply tries again with half an entry.
const maxSplits = 64

// Apply writes the groups in entries of at most MaxChanges changes. An entry
// that is stale is tried again in halves, so that one group that has become
// stale does not hold up the others; ErrStale is returned at the end, for the
// next pass to plan what is left. Any other error stops.
func Apply(ctx context.Context, propose Propose, todo Todo) error {
	var stale error
	splits := 0
	var write func(groups Todo) error
	write = func(groups Todo) error {
		var entry []store.Change
		for _, g := range groups {
			entry = append(entry, g...)
		}
		if len(entry) == 0 {
			return nil
		}
		err := propose(ctx, entry...)
		if !errors.Is(err, cluster.ErrStale) {
			return err
		}
		stale = err
		if len(groups) == 1 || splits >= maxSplits {
			return nil
		}
		splits++
		if err := write(groups[:len(groups)/2]); err != nil {
			return err
		}
		return write(groups[len(groups)/2:])
	}
	for len(todo) > 0 {
		n, end := len(todo[0]), 1
		for end < len(todo) && n+len(todo[end]) <= MaxChanges {
			n += len(todo[end])
			end++
		}
		if err := write(todo[:end]); err != nil {
			return err
		}
		todo = todo[end:]
	}
	return stale
}

// Number gives new tasks their ids. Plans leave them out, so that a plan is a
// function of what it sees alone.
func Number(todo Todo, newID func() string) {
	for _, g := range todo {
		for i := range g {
			if g[i].Op == store.OpCreate && g[i].Kind == store.KindTask && g[i].ID == "" {
				t := *g[i].Task
				t.ID = newID()
				g[i] = store.CreateTask(&t)
			}
		}
	}
}

// Sooner returns the earlier of two times, where zero means never.
func Sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Loop makes a pass at start, after every wake-up, when the last pass asked to
// be called again, and now and then in any case.
type Loop struct {
	Name    string
	Store   *store.Store
	Kinds   []store.Kind // what wakes it
	Propose Propose
	// Plan says what is to be written and when to look again though nothing
	// changed (zero: never).
	Plan func(now time.Time) (todo Todo, again time.Time)
	// Failed, if set, is told that not all of a plan was written.
	Failed func()
	Log    *slog.Logger
}

const (
	resync     = time.Minute
	staleRetry = 10 * time.Millisecond
	errorRetry = time.Second
	// A loop plans for at most a quarter of the time: a change is acted on at
	// once, but many that come together are gathered.
	planShare = 4
	maxGather = 250 * time.Millisecond
)

// Run blocks until ctx ends (nil) or leadership is lost (cluster.ErrNotLeader).
// A wake-up carries no data, so losing one costs delay, never correctness.
func (l Loop) Run(ctx context.Context) error {
	wake, stop := l.Store.Watch(l.Kinds...) // before the first pass, so nothing slips between
	defer stop()
	for {
		start := time.Now()
		todo, again := l.Plan(start)
		gather := min(maxGather, (planShare-1)*time.Since(start))
		err := Apply(ctx, l.Propose, todo)
		if err != nil && l.Failed != nil {
			l.Failed()
		}
		wait := resync
		if !again.IsZero() {
			wait = max(staleRetry, min(resync, time.Until(again)))
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, cluster.ErrNotLeader):
			return err
		case errors.Is(err, cluster.ErrStale):
			wait = staleRetry
		case err != nil:
			l.Log.Warn("pass will be retried", "loop", l.Name, "err", err)
			wait = errorRetry
		}
		if !sleep(ctx, gather, nil) || !sleep(ctx, wait, wake) {
			return nil
		}
	}
}

// sleep waits for d or a wake-up; false when ctx ended.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}
