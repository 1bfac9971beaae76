package pass

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func group(n int) []store.Change { return make([]store.Change, n) }

func TestApplyPacksGroupsAndNeverSplitsOne(t *testing.T) {
	for _, c := range []struct {
		groups []int
		want   string
	}{
		{[]int{1, 1, 1}, "[3]"},
		{[]int{499, 1, 1}, "[500 1]"},
		{[]int{300, 300, 100}, "[300 400]"},
		{[]int{1, 700, 1}, "[1 700 1]"},
		{[]int{0, 0}, "[]"},
		{nil, "[]"},
	} {
		var todo Todo
		for _, n := range c.groups {
			todo.Add(group(n)...)
		}
		got := []int{}
		err := Apply(t.Context(), func(_ context.Context, cs ...store.Change) error {
			got = append(got, len(cs))
			return nil
		}, todo)
		if fmt.Sprint(got) != c.want || err != nil {
			t.Errorf("%v: entries of %v, %v; want %s", c.groups, got, err, c.want)
		}
	}
}

func TestAStaleEntryDoesNotHoldUpTheOthers(t *testing.T) {
	todo := Todo{group(500), group(500), group(500)}
	n := 0
	err := Apply(t.Context(), func(context.Context, ...store.Change) error {
		if n++; n == 2 {
			return fmt.Errorf("task x: %w", cluster.ErrStale)
		}
		return nil
	}, todo)
	if n != 3 || !errors.Is(err, cluster.ErrStale) {
		t.Errorf("%d entries were written, %v", n, err)
	}
	var written []string
	todo = nil
	for _, id := range []string{"a", "b", "stale", "c", "d"} {
		todo.Add(store.Change{ID: id})
	}
	err = Apply(t.Context(), func(_ context.Context, cs ...store.Change) error {
		if slices.ContainsFunc(cs, func(c store.Change) bool { return c.ID == "stale" }) {
			return cluster.ErrStale
		}
		for _, c := range cs {
			written = append(written, c.ID)
		}
		return nil
	}, todo)
	if !slices.Equal(written, []string{"a", "b", "c", "d"}) || !errors.Is(err, cluster.ErrStale) {
		t.Errorf("%v were written, %v", written, err)
	}
	todo, n = Todo{group(500), group(500), group(500)}, 0
	err = Apply(t.Context(), func(context.Context, ...store.Change) error { n++; return cluster.ErrNotLeader }, todo)
	if n != 1 || !errors.Is(err, cluster.ErrNotLeader) {
		t.Errorf("without leadership %d entries were tried, %v", n, err)
	}
}

func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.New()
		start := time.Now()
		var passes []time.Duration
		failed := 0
		answers := []struct {
			again time.Duration // from the start
			err   error
		}{
			{again: 3 * time.Second},          // at once
			{again: 2 * time.Second},          // at 3s; in the past: soon again
			{},                                // nothing more: resync
			{err: cluster.ErrStale},           // soon again
			{err: errors.New("disk is full")}, // a second later
			{err: cluster.ErrNotLeader},
		}
		err := Loop{
			Name: "test", Store: s, Kinds: []store.Kind{store.KindNode}, Log: slog.New(slog.DiscardHandler),
			Plan: func(time.Time) (Todo, time.Time) {
				passes = append(passes, time.Since(start))
				a := answers[len(passes)-1]
				if a.again == 0 {
					return Todo{group(1)}, time.Time{}
				}
				return Todo{group(1)}, start.Add(a.again)
			},
			Propose: func(context.Context, ...store.Change) error { return answers[len(passes)-1].err },
			Failed:  func() { failed++ },
		}.Run(t.Context())
		if !errors.Is(err, cluster.ErrNotLeader) {
			t.Errorf("it ended with %v", err)
		}
		want := "[0s 3s 3.01s 1m3.01s 1m3.02s 1m4.02s]"
		if got := fmt.Sprint(passes); got != want {
			t.Errorf("passes at %s; want %s", got, want)
		}
		if failed != 3 {
			t.Errorf("it was told of %d failures; want 3", failed)
		}
	})
}

func TestLoopWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.New()
		passes := 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Loop{
				Name: "test", Store: s, Kinds: []store.Kind{store.KindNode}, Log: slog.New(slog.DiscardHandler),
				Plan: func(time.Time) (Todo, time.Time) { passes++; return nil, time.Time{} },
			}.Run(ctx)
		}()
		synctest.Wait()
		if err := s.Apply(1, store.Entry{Changes: []store.Change{store.CreateNode(&cluster.Node{ID: "n"})}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if passes != 2 {
			t.Errorf("%d passes; want one at the start and one for the change", passes)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestChanges(t *testing.T) {
	task := func(id string) *cluster.Task { return &cluster.Task{ID: id} }
	a, b, c, d := task("a"), task("b"), task("c"), task("d")
	b2 := task("b")
	names := func(ts []*cluster.Task) (out string) {
		for _, t := range ts {
			out += t.ID
		}
		return out
	}
	var ch Changes
	for _, step := range []struct {
		tasks         []*cluster.Task
		changed, gone string
	}{
		{nil, "", ""},
		{[]*cluster.Task{b, c}, "bc", ""},
		{[]*cluster.Task{b, c}, "", ""},
		{[]*cluster.Task{a, b2, c, d}, "abd", ""},
		{[]*cluster.Task{b2, d}, "", "ac"},
		{[]*cluster.Task{a, b, c}, "abc", "d"},
		{nil, "", "abc"},
	} {
		changed, gone := ch.Since(step.tasks)
		if names(changed) != step.changed || names(gone) != step.gone {
			t.Errorf("%s: changed %q, gone %q; want %q, %q", names(step.tasks), names(changed), names(gone), step.changed, step.gone)
		}
	}
}

func TestALoopThatPlansForLongGathersWakeUps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.New()
		passes, index := 0, uint64(0)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var loop sync.WaitGroup
		loop.Go(func() {
			Loop{
				Name: "test", Store: s, Kinds: []store.Kind{store.KindNode}, Log: slog.New(slog.DiscardHandler),
				Plan: func(time.Time) (Todo, time.Time) {
					passes++
					time.Sleep(10 * time.Millisecond) // as if it were work
					return nil, time.Time{}
				},
			}.Run(ctx)
		})
		for ctx.Err() == nil {
			index++
			if err := s.Apply(index, store.Entry{Changes: []store.Change{store.CreateNode(&cluster.Node{ID: fmt.Sprint(index)})}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		loop.Wait()
		if passes < 240 || passes > 251 {
			t.Errorf("%d passes of 10ms in 10s; want a quarter of the time", passes)
		}
	})
}
