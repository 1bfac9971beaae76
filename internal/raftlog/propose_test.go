package raftlog

import (
	"testing"
	"testing/synctest"
	"time"
)

func queued(q *queue, n int) {
	for range n {
		q.add(&proposal{entry: []byte{1}, answer: make(chan error, 1)})
	}
}

func TestAFrameWaitsForTheWritersItExpects(t *testing.T) {
	for _, c := range []struct {
		name     string
		writers  int
		patience time.Duration
		later    int // come after 100 µs, beside the one that is there
		took     time.Duration
	}{
		{"one that writes alone", 1, time.Millisecond, 0, 0},
		{"the others come", 4, time.Millisecond, 3, 100 * time.Microsecond},
		{"more than the others come", 4, time.Millisecond, 9, 100 * time.Microsecond},
		{"not all of the others come", 4, time.Millisecond, 2, time.Millisecond},
		{"nobody is to be waited for", 4, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &Log{proposals: newQueue()}
				queued(l.proposals, 1)
				if c.later > 0 {
					go func() {
						time.Sleep(100 * time.Microsecond)
						queued(l.proposals, c.later)
					}()
				}
				start := time.Now()
				if !l.gather(t.Context(), c.writers, c.patience) {
					t.Fatal("gather gave up")
				}
				if took := time.Since(start); took != c.took {
					t.Errorf("it took %v, not %v", took, c.took)
				}
				synctest.Wait()
				if got := len(l.proposals.take()); got != 1+c.later {
					t.Errorf("a frame of %d, not %d", got, 1+c.later)
				}
			})
		})
	}
}

func TestAQueueThatIsClosedTakesNothing(t *testing.T) {
	q := newQueue()
	queued(q, maxInFrame+2)
	if n := len(q.take()); n != maxInFrame {
		t.Errorf("a frame of %d", n)
	}
	if n := len(q.close()); n != 2 {
		t.Errorf("%d are to be answered, not 2", n)
	}
	if q.add(&proposal{}) {
		t.Error("a closed queue took a proposal")
	}
}
