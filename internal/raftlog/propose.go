package raftlog

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// inFlight is how many frames may be on their way at once: one is being made
// durable here, one on the followers, and the next is ready.
const inFlight = 4

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
	select {
	case l.proposals <- p:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.stopped:
		return cluster.ErrNotLeader
	}
	select {
	case err := <-p.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// batch gathers proposals into frames. A frame goes out as soon as fewer than
// inFlight are on their way: alone on a quiet log, with everything that has
// come meanwhile on a busy one.
func (l *Log) batch(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := semaphore.NewWeighted(inFlight)
	for {
		if err := slots.Acquire(ctx, 1); err != nil {
			return nil
		}
		var group []*proposal
		select {
		case p := <-l.proposals:
			group = l.gather(p)
		case <-ctx.Done():
			return nil
		}
		entries := make([][]byte, len(group))
		for i, p := range group {
			entries[i] = p.entry
		}
		f := l.raft.Apply(encodeFrame(entries), enqueueWait)
		wg.Go(func() {
			l.answer(group, f)
			slots.Release(1)
		})
	}
}

func (l *Log) gather(p *proposal) []*proposal {
	group, size := []*proposal{p}, len(p.entry)
	for len(group) < maxInFrame && size < maxFrame {
		select {
		case p := <-l.proposals:
			group, size = append(group, p), size+len(p.entry)
		default:
			return group
		}
	}
	return group
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
