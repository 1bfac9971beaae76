package network

import "sync"

// gather makes one piece of work of several that are asked for while another is
// under way. Some of what we ask of the kernel takes it tens of milliseconds of
// waiting, under a lock of its own, however much is asked for at once.
type gather[T any] struct {
	do func([]T) error

	turn turn       // held by who does the work
	mu   sync.Mutex // guards next
	next *batch[T]
}

func newGather[T any](do func([]T) error) *gather[T] {
	return &gather[T]{do: do, turn: newTurn()}
}

type batch[T any] struct {
	items []T
	done  bool // set by the holder of turn
	err   error
}

// add returns when the work for item is done, with the error of all that was
// done along with it.
func (g *gather[T]) add(item T) error {
	g.mu.Lock()
	if g.next == nil {
		g.next = &batch[T]{}
	}
	b := g.next
	b.items = append(b.items, item)
	g.mu.Unlock()

	g.turn <- struct{}{}
	defer g.turn.give()
	if !b.done {
		g.mu.Lock()
		g.next = nil // b: whoever comes now starts another
		g.mu.Unlock()
		b.err = g.do(b.items)
		b.done = true
	}
	return b.err
}
