package schedule

import (
	"slices"

	"github.com/skep-dev/skep/internal/cluster"
)

// branch is a node of the tree that spread preferences make: one level for each
// preference, one branch for each value of its label ("" where it is missing).
type branch struct {
	value    string
	tasks    int // active tasks of the service below
	children []*branch
	hosts    heap[ranked] // of a leaf
	full     bool
}

// evenly places up to count tasks so that the branches of each level hold the
// same number; what does not fit in one goes to its siblings.
func (p *planner) evenly(of version, n *need, count int) []*host {
	root := &branch{}
	for _, h := range p.order {
		ofService := p.running(of.service, h)
		if n.obstacleOn(h, ofService) != none {
			continue
		}
		b := root
		b.tasks += ofService
		for _, key := range n.spread {
			b = b.child(cluster.NodeFact(h.node, key))
			b.tasks += ofService
		}
		b.hosts.less = better
		b.hosts.push(ranked{h, p.failures(of, h), ofService})
	}
	root.sort()
	var out []*host
	for len(out) < count && !root.full {
		if h := p.descend(root, of, n); h != nil {
			out = append(out, h)
		}
	}
	return out
}

func (b *branch) child(value string) *branch {
	for _, c := range b.children {
		if c.value == value {
			return c
		}
	}
	c := &branch{value: value}
	b.children = append(b.children, c)
	return c
}

func (b *branch) sort() {
	slices.SortFunc(b.children, func(x, y *branch) int {
		if x.value < y.value {
			return -1
		}
		return 1
	})
	for _, c := range b.children {
		c.sort()
	}
}

// descend places one task below b; nil when there is no room, and b is full.
func (p *planner) descend(b *branch, of version, n *need) *host {
	if len(b.children) == 0 {
		return p.leaf(b, of, n)
	}
	for {
		var least *branch
		for _, c := range b.children {
			if !c.full && (least == nil || c.tasks < least.tasks) {
				least = c
			}
		}
		if least == nil {
			b.full = true
			return nil
		}
		if h := p.descend(least, of, n); h != nil {
			b.tasks++
			return h
		}
	}
}

func (p *planner) leaf(b *branch, of version, n *need) *host {
	for len(b.hosts.items) > 0 {
		r := b.hosts.pop()
		if n.hostObstacle(r.host, r.ofService) != none {
			continue
		}
		p.assume(r.host, of, n)
		r.ofService++
		b.hosts.push(r)
		b.tasks++
		return r.host
	}
	b.full = true
	return nil
}
