package store

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// Store is the replicated state of one manager, plus what the leader alone
// observes (see Observe). All methods are safe for concurrent use.
type Store struct {
	cur atomic.Pointer[tables]

	mu  sync.Mutex // held by writers; guards gen and the order of publishing
	gen uint64

	watchMu  sync.Mutex // guards watchers
	watchers map[*watcher]struct{}
}

type watcher struct {
	kinds kindSet
	ch    chan struct{}
}

// kindSet is a set of kinds, a bit each.
type kindSet uint16

func (k kindSet) with(kind Kind) kindSet { return k | 1<<kind }

const everyKind kindSet = 1<<16 - 1

// New returns an empty store.
func New() *Store {
	s := &Store{watchers: map[*watcher]struct{}{}}
	s.cur.Store(newTables())
	return s
}

// View returns a consistent, immutable picture of all tables. It costs one
// atomic load.
func (s *Store) View() View { return s.cur.Load() }

// Apply makes an entry's changes under the number index and wakes the watchers.
// The numbers of entries grow; they become the objects' versions. An entry that
// is refused changes nothing but the number. The kinds of error are
// cluster.ErrStale, errdefs.ErrAlreadyExists, ErrNotFound and ErrInvalidArgument;
// which one depends on the entries alone, so every manager sees the same.
func (s *Store) Apply(index uint64, e Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.apply(index, e)
}

// ApplyAll is Apply for entries under the numbers that come next, at little more
// than the cost of one: they are published together. It returns an error, or nil,
// an entry.
func (s *Store) ApplyAll(entries []Entry) []error {
	if len(entries) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(entries))
	index := s.cur.Load().index
	if s.applyTogether(index+1, entries) {
		return errs
	}
	for i, e := range entries { // one is refused: what it changed before that must go
		errs[i] = s.apply(index+1+uint64(i), e)
	}
	return errs
}

// applyTogether makes all the entries' changes in one transaction, or none of
// them; s.mu is held.
func (s *Store) applyTogether(index uint64, entries []Entry) bool {
	x := s.begin(index, time.Time{})
	for i, e := range entries {
		x.index, x.at = index+uint64(i), e.At
		if x.apply(e.Changes) != nil {
			return false
		}
	}
	s.publish(x)
	return true
}

// apply makes one entry's changes; s.mu is held.
func (s *Store) apply(index uint64, e Entry) error {
	x := s.begin(index, e.At)
	if err := x.apply(e.Changes); err != nil {
		refused := *s.cur.Load()
		refused.index = index
		s.cur.Store(&refused)
		return err
	}
	s.publish(x)
	return nil
}

// begin starts a transaction; s.mu is held.
func (s *Store) begin(index uint64, at time.Time) *tx {
	s.gen++
	x := &tx{tables: *s.cur.Load(), gen: s.gen, at: at}
	x.index = index
	return x
}

// publish makes a transaction's tables the current ones; s.mu is held.
func (s *Store) publish(x *tx) {
	t := x.tables
	s.cur.Store(&t)
	s.wake(x.touched)
}

func (s *Store) wake(kinds kindSet) {
	if kinds == 0 {
		return
	}
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	for w := range s.watchers {
		if w.kinds&kinds == 0 {
			continue
		}
		select {
		case w.ch <- struct{}{}:
		default: // a signal already waits: they merge
		}
	}
}

// Watch returns a channel of capacity 1 that is signalled after each change to
// one of the kinds (none: any kind), and a function that ends the watch. Signals
// carry no data and merge. Watch before the first View.
func (s *Store) Watch(kinds ...Kind) (<-chan struct{}, func()) {
	w := &watcher{ch: make(chan struct{}, 1)}
	for _, k := range kinds {
		w.kinds = w.kinds.with(k)
	}
	if len(kinds) == 0 {
		w.kinds = everyKind
	}
	s.watchMu.Lock()
	s.watchers[w] = struct{}{}
	s.watchMu.Unlock()
	return w.ch, func() {
		s.watchMu.Lock()
		delete(s.watchers, w)
		s.watchMu.Unlock()
	}
}

// Observation is a task's soft status.
type Observation struct {
	TaskID string
	Status cluster.Status
}

// Observe sets a task's soft status: one that is not worth a log entry (the
// steps between ASSIGNED and RUNNING). Views show the later of the logged and
// the soft one. It is the leader's own and gone with its leadership. One that
// would go backwards, or is of a task that is gone, is dropped.
func (s *Store) Observe(taskID string, st cluster.Status) {
	s.ObserveAll([]Observation{{taskID, st}})
}

// ObserveAll is Observe for many tasks at the cost of one.
func (s *Store) ObserveAll(obs []Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.begin(s.cur.Load().index, time.Time{})
	for i := range obs {
		x.observe(obs[i].TaskID, obs[i].Status)
	}
	if x.touched != 0 {
		s.publish(x)
	}
}

// ObserveNode sets a node's soft state (UNKNOWN after a change of leader);
// the zero status takes it back, and so does a logged change of state.
func (s *Store) ObserveNode(nodeID string, st cluster.NodeStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.begin(s.cur.Load().index, time.Time{})
	x.observeNode(nodeID, st)
	if x.touched != 0 {
		s.publish(x)
	}
}

// ForgetObserved drops everything soft, at the end of leadership.
func (s *Store) ForgetObserved() {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.begin(s.cur.Load().index, time.Time{})
	x.forget()
	if x.touched != 0 {
		s.publish(x)
	}
}
