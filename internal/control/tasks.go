package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
	"github.com/skep-dev/skep/internal/store"
)

func (a *API) taskMethods() {
	method(a, "tasks", a.tasks)
	method(a, "task", a.task)
}

// Tasks lists the services' tasks; the attachments of plain containers are none.
func (a *API) Tasks(ctx context.Context, f Filters) ([]swarm.Task, error) {
	return read(ctx, a, "tasks", listReq{f}, a.tasks)
}

func (a *API) tasks(_ context.Context, r listReq) ([]swarm.Task, error) {
	f := r.Filters
	if err := filters.Check(f, "name", "id", "label", "service", "node", "desired-state", "_up-to-date", "up-to-date", "runtime"); err != nil {
		return nil, err
	}
	v := a.Store.View()
	services, err := refs(f["service"], func(ref string) (string, error) {
		s, err := findService(v, ref)
		if err != nil {
			return "", err
		}
		return s.ID, nil
	})
	if err != nil {
		return nil, err
	}
	nodes, err := refs(f["node"], func(ref string) (string, error) {
		n, err := findNode(v, ref)
		if err != nil {
			return "", err
		}
		return n.ID, nil
	})
	if err != nil {
		return nil, err
	}
	for want := range f["desired-state"] {
		switch s := swarm.TaskState(strings.ToLower(want)); s {
		case swarm.TaskStateRunning, swarm.TaskStateShutdown, swarm.TaskStateAccepted, swarm.TaskStateReady,
			swarm.TaskStateComplete, swarm.TaskStateRemove:
		default:
			return nil, cluster.Invalidf("invalid filter 'desired-state=%s'", want)
		}
	}
	if len(f["runtime"]) > 0 && !f["runtime"]["container"] {
		return nil, nil
	}
	var out []swarm.Task
	for _, t := range candidates(v, services, nodes) {
		if t.Attach == nil && (services == nil || services[t.ServiceID]) && (nodes == nil || nodes[t.NodeID]) && passes(v, f, t) {
			out = append(out, taskAPI(v, t))
		}
	}
	return out, nil
}

// refs resolves the values of a filter; nil when it is not given.
func refs(values map[string]bool, find func(string) (string, error)) (map[string]bool, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := map[string]bool{}
	for ref := range values {
		id, err := find(ref)
		if err != nil {
			return nil, err
		}
		out[id] = true
	}
	return out, nil
}

// candidates lists the tasks to look at: by an index where there is one.
func candidates(v store.View, services, nodes map[string]bool) []*cluster.Task {
	var out []*cluster.Task
	switch {
	case services != nil:
		for id := range services {
			out = append(out, v.TasksOf(id)...)
		}
	case nodes != nil:
		for id := range nodes {
			out = append(out, v.TasksOn(id)...)
		}
	default:
		return v.Tasks()
	}
	return out
}

func passes(v store.View, f Filters, t *cluster.Task) bool {
	if !filters.Prefixed(f, "id", t.ID) || len(f["name"]) > 0 && !filters.Prefixed(f, "name", taskName(v, t)) {
		return false
	}
	if states := f["desired-state"]; len(states) > 0 && !states[string(t.Desired.API())] && !states[strings.ToUpper(string(t.Desired.API()))] {
		return false
	}
	if len(f["label"]) > 0 && !filters.Labels(f, "label", nil) { // tasks have no labels of their own
		return false
	}
	for _, key := range []string{"up-to-date", "_up-to-date"} {
		if len(f[key]) == 0 {
			continue
		}
		s := v.Service(t.ServiceID)
		current := s != nil && !cluster.NewOutdated(s, v).Has(t)
		if !f[key][fmt.Sprint(current)] && !f[key][map[bool]string{true: "1", false: "0"}[current]] {
			return false
		}
	}
	return true
}

// Task returns one task.
func (a *API) Task(ctx context.Context, ref string) (swarm.Task, error) {
	return read(ctx, a, "task", refReq{ref}, a.task)
}

func (a *API) task(_ context.Context, r refReq) (swarm.Task, error) {
	v := a.Store.View()
	t, err := findTask(v, r.Ref)
	if err != nil {
		return swarm.Task{}, err
	}
	return taskAPI(v, t), nil
}
