package agent

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/cluster"
)

// worker brings about one task. Its fields are its goroutine's alone, but wants.
type worker struct {
	a     *Agent
	wants chan wish // capacity 1: the latest wish

	task    *cluster.WantedTask
	status  cluster.Status
	gone    bool // the manager does not mention the task any more
	removed bool // its container is gone
}

// wish is what is wanted of a task; nil: forget it.
type wish struct{ task *cluster.WantedTask }

// outcome is how a step ended: with an error, or with what the status becomes.
type outcome struct {
	status func(cluster.Status) cluster.Status
	err    error
}

func (w *worker) next() step {
	return next(w.task.Desired, w.gone, w.status.State, w.removed)
}

// run does step after step until the task is forgotten or ctx ends.
func (w *worker) run(ctx context.Context) {
	for ctx.Err() == nil {
		switch s := w.next(); s {
		case done:
			select {
			case w.a.ended <- w.task.ID:
			case x := <-w.wants: // it is wanted after all
				w.take(x)
				continue
			case <-ctx.Done():
			}
			return
		case idle:
			w.wait(ctx, nil)
		default:
			w.perform(ctx, s)
		}
	}
}

// wait waits for a wish, or for the timer if there is one.
func (w *worker) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case x := <-w.wants:
		w.take(x)
	case <-timer:
	case <-ctx.Done():
	}
}

func (w *worker) take(x wish) {
	w.gone = x.task == nil
	if x.task == nil {
		return
	}
	if reflect.DeepEqual(w.task, x.task) {
		return // a complete set repeats what is known
	}
	w.task = x.task
	w.persist()
}

// perform does one step, until it is done or something else is wanted.
func (w *worker) perform(ctx context.Context, s step) {
	switch s {
	case prepare:
		w.advance(cluster.StatePreparing, "preparing")
	case start:
		w.advance(cluster.StateStarting, "starting")
	}
	stepCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &running{a: w.a, task: w.task, status: w.status, notes: make(chan func(*cluster.Status))}
	result := make(chan outcome, 1)
	go func() { result <- r.guarded(stepCtx, s) }()
	for {
		select {
		case x := <-w.wants:
			w.take(x)
			if w.next() != s {
				cancel()
			}
		case note := <-r.notes:
			note(&w.status)
			w.publish()
		case out := <-result:
			w.finish(ctx, s, out, stepCtx.Err() != nil)
			return
		}
	}
}

// finish takes in how a step ended. One that failed for a passing reason is done
// again after a while.
func (w *worker) finish(ctx context.Context, s step, out outcome, canceled bool) {
	switch {
	case out.err == nil:
		before := w.status.State
		w.status = out.status(w.status)
		w.removed = w.removed || s == remove
		if w.status.State != before {
			w.status.At = time.Now()
		}
		w.publish()
		w.persist()
	case canceled:
		// Something else is wanted, or the daemon ends; the next step finds what
		// this one has left.
	case s == stop || s == remove || temporary(out.err):
		w.a.log.Debug("task will be tried again", "task", w.task.ID, "step", s, "err", out.err)
		w.status.Err = out.err.Error()
		w.publish()
		w.wait(ctx, time.After(retryAfter))
	default:
		w.a.log.Info("task failed", "task", w.task.ID, "step", s, "err", out.err)
		w.status = failed(w.status, out.err)
		w.status.At = time.Now()
		w.publish()
		w.persist()
	}
}

// temporary reports whether an error may pass by itself.
func temporary(err error) bool {
	return errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded)
}

// advance notes that the task has come to a state; it never goes back.
func (w *worker) advance(to cluster.State, message string) {
	if w.status.State >= to {
		return
	}
	w.status.State, w.status.At, w.status.Message, w.status.Err = to, time.Now(), message, ""
	w.publish()
	w.persist()
}

func (w *worker) publish() { w.a.publish(w.task.ID, w.status) }

func (w *worker) persist() {
	if err := w.a.save(record{Task: w.task, Status: w.status}); err != nil {
		w.a.log.Warn("a task may be forgotten at a restart", "task", w.task.ID, "err", err)
	}
}
