package rollout

import (
	"slices"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pass"
)

// progress is how far the places have come that an update has touched.
type progress struct {
	touched   int // places with a task of the present version
	busy      int // of them, those that count against the parallelism
	unsettled bool
	failures  int
	failed    *cluster.Task // the first that failed
	// watchUntil is when the last new task has been watched for long enough.
	watchUntil time.Time
}

func (r *rollout) progress() progress {
	var f progress
	for _, pl := range r.places {
		news := slices.DeleteFunc(slices.Clone(pl.Tasks), func(t *cluster.Task) bool {
			return t.SpecVersion != r.svc.SpecVersion || t.Desired == cluster.StateRemove
		})
		if len(news) == 0 {
			continue
		}
		f.touched++
		r.place(&f, news)
	}
	return f
}

// place judges one place by its new tasks, oldest first.
func (r *rollout) place(f *progress, news []*cluster.Task) {
	for _, t := range news {
		if t.Status.Serving && t.Status.State == cluster.StateRunning {
			if _, known := r.began[t.ID]; !known {
				r.began[t.ID] = t.Status.At
			}
		}
	}
	for _, t := range news {
		if r.failed(t) {
			f.failures++
			if f.failed == nil {
				f.failed = t
			}
			break // a place fails once
		}
	}
	settled, ok := r.settled(news)
	if !ok {
		f.busy++
		f.unsettled = true
		return
	}
	if next := settled.Add(r.cfg.Delay); next.After(r.now) {
		f.busy++
		r.again = pass.Sooner(r.again, next)
	}
	if until := settled.Add(r.cfg.Monitor); until.After(f.watchUntil) {
		f.watchUntil = until
	}
}

// settled returns when the place's update was over: a new task served, or the
// first one ended or had its time.
func (r *rollout) settled(news []*cluster.Task) (time.Time, bool) {
	for _, t := range news {
		if at, ok := r.began[t.ID]; ok {
			return at, true
		}
	}
	first := news[0]
	if first.Status.State.Terminal() {
		return first.Status.At, true
	}
	deadline := first.CreatedAt.Add(ProgressDeadline)
	if deadline.After(r.now) {
		r.again = pass.Sooner(r.again, deadline)
		return time.Time{}, false
	}
	return deadline, true
}

// failed reports whether a new task ended before it ran or too soon after, or
// never came to run.
func (r *rollout) failed(t *cluster.Task) bool {
	if !t.Status.State.Terminal() {
		_, served := r.began[t.ID]
		return !served && t.Desired <= cluster.StateRunning && !t.CreatedAt.Add(ProgressDeadline).After(r.now) &&
			t.NotBefore.IsZero()
	}
	if !t.EndedByItself() || r.svc.Update.StartedAt != nil && t.CreatedAt.Before(r.svc.Update.StartedAt.Add(-clockSkew)) {
		return false
	}
	if at, known := r.began[t.ID]; known {
		return t.Status.At.Sub(at) <= r.cfg.Monitor
	}
	// It never served, or it did before this manager led: then an end that came
	// long after its making was no early one.
	return t.Status.At.Sub(t.CreatedAt) <= r.cfg.Monitor+ProgressDeadline
}

// clockSkew is how far two managers' clocks may be apart.
const clockSkew = time.Minute
