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
	changed, gone = Since(c.last, tasks, func(t *cluster.Task) string { return t.ID })
	c.last = tasks
	return changed, gone
}

// Since returns the objects of a list that are new or changed, and those that are
// gone, since an older list of the same table. Both are as the store lists them.
func Since[T any](old, now []*T, id func(*T) string) (changed, gone []*T) {
	if len(old) == len(now) && (len(now) == 0 || &old[0] == &now[0]) {
		return nil, nil // the store gave out the same list
	}
	for _, o := range now {
		for len(old) > 0 && old[0] != o && id(old[0]) < id(o) {
			gone = append(gone, old[0])
			old = old[1:]
		}
		switch {
		case len(old) > 0 && old[0] == o:
			old = old[1:]
		case len(old) > 0 && id(old[0]) == id(o):
			old = old[1:]
			changed = append(changed, o)
		default:
			changed = append(changed, o)
		}
	}
	return changed, append(gone, old...)
}
