package raftlog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// maxGather bounds how long a frame waits for the writers that are expected.
const maxGather = 2 * time.Millisecond

// enqueueWait bounds how long Raft may take to accept a frame.
const enqueueWait = 5 * time.Second

// ErrLost is returned by Propose when leadership ended before the write was
// confirmed: it may have been made or not. It is also a cluster.ErrNotLeader.
var ErrLost error = lostError{}

type lostError struct{}

func (lostError) Error() string {
	return "leadership was lost before the write was confirmed; it may have been made"
}

func (lostError) Is(target error) bool { return target == cluster.ErrNotLeader }

// proposal is one entry on its way into the log.
type proposal struct {
	entry  []byte
	answer chan error // capacity 1
}

// queue holds the proposals that no frame has taken yet.
type queue struct {
	enough chan struct{} // capacity 1: there are as many as are wanted

	mu      sync.Mutex // guards the fields below
	waiting []*proposal
	wanted  int
	closed  bool
}

func newQueue() *queue { return &queue{enough: make(chan struct{}, 1), wanted: 1} }

// add reports whether the queue still takes proposals.
func (q *queue) add(p *proposal) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if q.waiting = append(q.waiting, p); len(q.waiting) >= q.wanted {
		q.signal()
	}
	return true
}

func (q *queue) signal() {
	select {
	case q.enough <- struct{}{}:
	default:
	}
}

// want has enough signalled when n proposals wait.
func (q *queue) want(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-q.enough: // meant another number
	default:
	}
	if q.wanted = n; len(q.waiting) >= n {
		q.signal()
	}
}

// take returns the proposals of the next frame.
func (q *queue) take() (group []*proposal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.waiting) && n < maxInFrame && size < maxFrame {
		size += len(q.waiting[n].entry)
		n++
	}
	group, q.waiting = q.waiting[:n:n], q.waiting[n:]
	return group
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// close refuses further proposals and returns those that wait.
func (q *queue) close() []*proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	return q.waiting
}

// Propose writes changes as one entry, whole or not at all, and returns once it
// is in the log of a majority and in this manager's store. Errors: ErrNotLeader
// when this manager does not lead (nothing was written), ErrLost, the store's
// (see store.Apply), or ctx's, after which the write may still be made.
func (l *Log) Propose(ctx context.Context, changes ...store.Change) error {
	if !l.Leading() {
		return cluster.ErrNotLeader
	}
	entry, err := store.EncodeEntry(store.Entry{At: time.Now(), Changes: changes})
	if err != nil {
		return err
	}
	p := &proposal{entry: entry, answer: make(chan error, 1)}
	if !l.proposals.add(p) {
		return cluster.ErrNotLeader
	}
	select {
	case err := <-p.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// batch gathers proposals into frames, one on its way at a time. Most of what a
// frame costs, three disks and two messages, it costs whatever it holds. So the
// writers that the last one answered, who may have their next write at hand, are
// waited for, but for no longer than a frame takes: a busy log carries all its
// writers in each frame, and one that writes alone never waits.
func (l *Log) batch(ctx context.Context) {
	defer func() {
		for _, p := range l.proposals.close() {
			p.answer <- cluster.ErrNotLeader
		}
	}()
	writers, patience := 1, time.Duration(0)
	for l.gather(ctx, writers, patience) {
		group := l.proposals.take()
		entries := make([][]byte, len(group))
		for i, p := range group {
			entries[i] = p.entry
		}
		start := time.Now()
		l.answer(group, l.raft.Apply(encodeFrame(entries), enqueueWait))
		writers, patience = len(group)+l.proposals.len(), min(time.Since(start), maxGather)
	}
}

// gather waits for a proposal, and for as many as there are writers while
// patience lasts; false when ctx has ended.
func (l *Log) gather(ctx context.Context, writers int, patience time.Duration) bool {
	l.proposals.want(1)
	select {
	case <-l.proposals.enough:
	case <-ctx.Done():
		return false
	}
	if patience <= 0 || l.proposals.len() >= writers {
		return true
	}
	l.proposals.want(writers)
	enough := time.NewTimer(patience)
	defer enough.Stop()
	select {
	case <-l.proposals.enough:
	case <-enough.C:
	case <-ctx.Done():
		return false
	}
	return true
}

func (l *Log) answer(group []*proposal, f raft.ApplyFuture) {
	err := l.wait(f)
	var each []error
	if err == nil {
		each, _ = f.Response().([]error)
		if len(each) != len(group) {
			err = errors.New("the log was applied otherwise than it was written")
		}
	}
	for i, p := range group {
		if err != nil {
			p.answer <- err
		} else {
			p.answer <- each[i]
		}
	}
}

// wait returns what Raft answers, in our errors. Raft never answers what it held
// at the moment it was shut down: that has failed with it.
func (l *Log) wait(f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return translate(err)
	case <-l.down:
	}
	select {
	case err := <-done:
		return translate(err)
	default:
		return translate(raft.ErrRaftShutdown)
	}
}

// translate turns Raft's errors into ours.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return cluster.ErrNotLeader
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return ErrLost
	}
	return err
}
