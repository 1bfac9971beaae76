package pass

import "github.com/skep-dev/skep/internal/cluster"

// Changes tells which tasks have changed from one pass to the next, at the cost
// of comparing pointers. The zero value has seen none.
type Changes struct {
	last []*cluster.Task
}

// Since returns the tasks of the list (sorted by id, as the store lists them)
// that are new or changed, and those that are gone, since the last call.
func (c *Changes) Since(tasks []*cluster.Task) (changed, gone []*cluster.Task) {
	old := c.last
	c.last = tasks
	for _, t := range tasks {
		for len(old) > 0 && old[0] != t && old[0].ID < t.ID {
			gone = append(gone, old[0])
			old = old[1:]
		}
		switch {
		case len(old) > 0 && old[0] == t:
			old = old[1:]
		case len(old) > 0 && old[0].ID == t.ID:
			old = old[1:]
			changed = append(changed, t)
		default:
			changed = append(changed, t)
		}
	}
	return changed, append(gone, old...)
}
