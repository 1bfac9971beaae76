package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Proposer writes entries to the replicated log: all changes together or none.
type Proposer interface {
	Propose(ctx context.Context, changes ...store.Change) error
}

// maxEntry bounds the changes in one log entry.
const maxEntry = 512

// writer logs what nodes observe. While one entry is on its way the next is
// gathered, so that a burst costs few entries and a single status no wait.
type writer struct {
	store   *store.Store
	propose Proposer
	log     *slog.Logger
	wake    chan struct{}

	mu       sync.Mutex
	statuses map[string]cluster.Status
	nodes    map[string][]nodeEdit
}

// nodeEdit changes a copy of a node and reports whether it did.
type nodeEdit func(*cluster.Node) bool

func newWriter(s *store.Store, p Proposer, log *slog.Logger) *writer {
	return &writer{
		store: s, propose: p, log: log, wake: make(chan struct{}, 1),
		statuses: map[string]cluster.Status{}, nodes: map[string][]nodeEdit{},
	}
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// status has a task's status logged.
func (w *writer) status(taskID string, st cluster.Status) {
	w.mu.Lock()
	if old, ok := w.statuses[taskID]; !ok || st.State >= old.State {
		w.statuses[taskID] = st
	}
	w.mu.Unlock()
	w.signal()
}

// node has a node's record changed.
func (w *writer) node(id string, edit nodeEdit) {
	w.mu.Lock()
	w.nodes[id] = append(w.nodes[id], edit)
	w.mu.Unlock()
	w.signal()
}

// run writes until ctx ends or leadership is lost.
func (w *writer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		err := w.flush(ctx)
		switch {
		case errors.Is(err, cluster.ErrNotLeader):
			return err
		case err != nil && ctx.Err() == nil:
			w.log.Warn("observations will be logged again", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
				w.signal()
			case <-ctx.Done():
			}
		}
	}
}

// flush writes all that is gathered; what could not be written stays.
func (w *writer) flush(ctx context.Context) error {
	w.mu.Lock()
	statuses, nodes := w.statuses, w.nodes
	w.statuses, w.nodes = map[string]cluster.Status{}, map[string][]nodeEdit{}
	w.mu.Unlock()
	err := errors.Join(w.flushNodes(ctx, nodes), w.flushStatuses(ctx, statuses))
	if err != nil {
		w.mu.Lock()
		for id, st := range statuses {
			if newer, ok := w.statuses[id]; !ok || newer.State < st.State {
				w.statuses[id] = st
			}
		}
		for id, edits := range nodes {
			w.nodes[id] = append(edits, w.nodes[id]...)
		}
		w.mu.Unlock()
	}
	return err
}

// flushStatuses writes statuses and removes from the map what is written.
func (w *writer) flushStatuses(ctx context.Context, statuses map[string]cluster.Status) error {
	ids := slices.Sorted(maps.Keys(statuses))
	for chunk := range slices.Chunk(ids, maxEntry) {
		changes := make([]store.Change, 0, len(chunk))
		for _, id := range chunk {
			changes = append(changes, store.SetStatus(id, statuses[id]))
		}
		if err := w.propose.Propose(ctx, changes...); err != nil {
			return err
		}
		for _, id := range chunk {
			delete(statuses, id)
		}
	}
	return nil
}

// flushNodes writes nodes together; if another writer was faster with one of
// them, each by itself from a new reading.
func (w *writer) flushNodes(ctx context.Context, nodes map[string][]nodeEdit) error {
	if len(nodes) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(nodes))
	if changes := w.edit(ids, nodes); len(changes) > 0 {
		err := w.propose.Propose(ctx, changes...)
		if errors.Is(err, cluster.ErrStale) {
			return w.flushEach(ctx, ids, nodes)
		}
		if err != nil {
			return err
		}
	}
	clear(nodes)
	return nil
}

func (w *writer) flushEach(ctx context.Context, ids []string, nodes map[string][]nodeEdit) error {
	for _, id := range ids {
		for {
			changes := w.edit([]string{id}, nodes)
			if len(changes) == 0 {
				break
			}
			err := w.propose.Propose(ctx, changes...)
			if err == nil {
				break
			}
			if !errors.Is(err, cluster.ErrStale) {
				return err
			}
		}
		delete(nodes, id)
	}
	return nil
}

func (w *writer) edit(ids []string, nodes map[string][]nodeEdit) []store.Change {
	v := w.store.View()
	var out []store.Change
	for _, id := range ids {
		old := v.Node(id)
		if old == nil {
			continue
		}
		n, changed := *old, false
		for _, edit := range nodes[id] {
			changed = edit(&n) || changed
		}
		if changed {
			out = append(out, store.UpdateNode(&n))
		}
	}
	return out
}
