package dispatch

import "slices"

// cursor is how far one session has followed the planner.
type cursor struct {
	started bool
	own     uint64
	nets    map[string]uint64
}

// next returns what a node has to be told since its cursor's last call, and
// whether that is the complete set. It returns nil when there is nothing to say.
func (p *planner) next(node string, c *cursor) (items []*wireItem, complete bool) {
	own := p.nodes[node]
	if own == nil {
		return nil, false
	}
	if c.started {
		items, ok := p.changes(node, own, c)
		if ok {
			return items, false
		}
	}
	c.started, c.own, c.nets = true, own.gen, map[string]uint64{}
	items = own.all()
	for _, id := range p.part[node] {
		if set := p.nets[id]; set != nil {
			c.nets[id] = set.gen
			items = append(items, set.all()...)
		}
	}
	return withoutSelf(node, items), true
}

// changes is next for a node that has the complete set; false when the history
// does not reach back to where it is.
func (p *planner) changes(node string, own *itemSet, c *cursor) ([]*wireItem, bool) {
	more, ok := own.since(c.own)
	if !ok {
		return nil, false
	}
	items := slices.Clone(more)
	for id, gen := range c.nets {
		set := p.nets[id]
		if set == nil {
			return nil, false
		}
		more, ok := set.since(gen)
		if !ok {
			return nil, false
		}
		if slices.Contains(p.part[node], id) {
			items = append(items, more...)
			continue
		}
		for _, it := range more {
			items = append(items, &wireItem{Kind: it.Kind, ID: it.ID})
		}
		for k := range set.items {
			items = append(items, &wireItem{Kind: k.kind, ID: k.id})
		}
	}
	nets := make(map[string]uint64, len(p.part[node]))
	for _, id := range p.part[node] {
		set := p.nets[id]
		if set == nil {
			continue
		}
		if _, known := c.nets[id]; !known {
			items = append(items, set.all()...)
		}
		nets[id] = set.gen
	}
	c.own, c.nets = own.gen, nets
	return withoutSelf(node, items), true
}

// withoutSelf drops the node's own entries among the peers.
func withoutSelf(node string, items []*wireItem) []*wireItem {
	return slices.DeleteFunc(items, func(it *wireItem) bool {
		return it.Kind == peerKind && len(it.ID) > len(node) &&
			it.ID[len(it.ID)-len(node)-1] == '/' && it.ID[len(it.ID)-len(node):] == node
	})
}

// latest keeps the last change of each item, sorted by kind and id.
func latest(items []*wireItem) []*wireItem {
	last := make(map[key]*wireItem, len(items))
	for _, it := range items {
		last[key{it.Kind, it.ID}] = it
	}
	out := make([]*wireItem, 0, len(last))
	for _, it := range last {
		out = append(out, it)
	}
	sortItems(out)
	return out
}
