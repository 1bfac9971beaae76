package schedule

// The order of hosts for a task: fewer failures of its version where they
// matter, then fewer tasks of its service, then fewer tasks in all.

// lighter orders the hosts of a class, by their load alone.
func lighter(a, b *host) bool {
	if a.total != b.total {
		return a.total < b.total
	}
	return a.nth < b.nth
}

// ranked is a host as one group of tasks sees it.
type ranked struct {
	*host
	failures, ofService int
}

func better(a, b ranked) bool {
	switch {
	case a.failures != b.failures:
		return a.failures < b.failures
	case a.ofService != b.ofService:
		return a.ofService < b.ofService
	}
	return lighter(a.host, b.host)
}

// heap is a binary heap.
type heap[T any] struct {
	items []T
	less  func(a, b T) bool
}

func (h *heap[T]) init() {
	for i := len(h.items)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
}

func (h *heap[T]) push(x T) {
	h.items = append(h.items, x)
	for i := len(h.items) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.less(h.items[i], h.items[parent]) {
			return
		}
		h.items[i], h.items[parent] = h.items[parent], h.items[i]
		i = parent
	}
}

func (h *heap[T]) pop() T {
	top, last := h.items[0], len(h.items)-1
	h.items[0] = h.items[last]
	h.items = h.items[:last]
	h.down(0)
	return top
}

func (h *heap[T]) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h.items); c++ {
			if h.less(h.items[c], h.items[least]) {
				least = c
			}
		}
		if least == i {
			return
		}
		h.items[i], h.items[least] = h.items[least], h.items[i]
		i = least
	}
}
