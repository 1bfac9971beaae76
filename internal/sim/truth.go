package sim

import (
	"fmt"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// really checks the containers as they are, whatever the managers know of them:
// on machines that are cut off, those that were replaced run on.
func (f *Fleet) really(v store.View) {
	if !f.s.truth {
		return
	}
	addrs, ports, places := map[held]string{}, map[string]string{}, map[string]string{}
	for _, id := range sortedKeys(f.machines) {
		m := f.machines[id]
		for _, task := range sortedKeys(m.containers) {
			c := m.containers[task]
			if m.off || c.state.Terminal() {
				continue
			}
			for _, h := range c.holds {
				alone(f, addrs, h, task, fmt.Sprintf("have %v", h.addr))
			}
			if c.state < cluster.StateStarting {
				continue
			}
			for _, p := range c.ports {
				k := fmt.Sprintf("%s %d/%s", id, p.PublishedPort, p.Protocol)
				alone(f, ports, k, task, "have port "+k)
			}
			// Beside one that cannot hear that it was replaced, or stops, another runs.
			t := v.Task(task)
			if m.cut || m.anew || c.stop || t == nil || startsFirst(v.Service(t.ServiceID)) {
				continue
			}
			k := fmt.Sprint(t.ServiceID, t.Key())
			alone(f, places, k, task, "run in place "+k)
		}
	}
}

// alone notes that a container has something, and complains if another has it.
func alone[K comparable](f *Fleet, by map[K]string, k K, task, what string) {
	if other := by[k]; other != "" {
		f.s.T.Errorf("the containers of %s and %s both %s\n%s", f.told(other), f.told(task), what, f.s.Dump())
		f.s.truth = false // once is enough
	}
	by[k] = task
}

func (f *Fleet) told(task string) string {
	if t := f.s.View().Task(task); t != nil {
		return f.s.line(t)
	}
	return task + " (forgotten)"
}
