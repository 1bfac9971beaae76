package sim

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// What users do, as control would write it.

// Replicated returns the spec of a service whose tasks play the given part (see
// Part): it is their image.
func Replicated(name, part string, replicas uint64) swarm.ServiceSpec {
	delay := 5 * time.Second
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Image: part},
			RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay},
		},
		Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
}

// Global is Replicated for a global service.
func Global(name, part string) swarm.ServiceSpec {
	spec := Replicated(name, part, 0)
	spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	return spec
}

// Create creates a service and returns its id.
func (s *Swarm) Create(spec swarm.ServiceSpec) string {
	s.T.Helper()
	svc := &cluster.Service{ID: s.NewID(), Spec: &spec}
	s.Must(store.CreateService(svc))
	return svc.ID
}

// Update changes a service's spec.
func (s *Swarm) Update(id string, change func(*swarm.ServiceSpec)) {
	s.T.Helper()
	s.change(id, func(svc *cluster.Service) {
		spec := clone(*svc.Spec)
		change(&spec)
		svc.Previous, svc.Spec, svc.Update = svc.Spec, &spec, nil
	})
}

// Rollback goes back to a service's previous spec.
func (s *Swarm) Rollback(id string) {
	s.T.Helper()
	s.change(id, func(svc *cluster.Service) {
		now := time.Now()
		svc.Spec, svc.Previous = svc.Previous, svc.Spec
		svc.Update = &swarm.UpdateStatus{
			State: swarm.UpdateStateRollbackStarted, StartedAt: &now, Message: "manually requested rollback",
		}
	})
}

// Scale sets a service's replicas.
func (s *Swarm) Scale(id string, replicas uint64) {
	s.T.Helper()
	s.Update(id, func(spec *swarm.ServiceSpec) {
		spec.Mode = swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}}
	})
}

func (s *Swarm) change(id string, change func(*cluster.Service)) {
	s.T.Helper()
	err := s.write(s.ctx, func(v store.View) []store.Change {
		svc := *v.Service(id)
		change(&svc)
		return []store.Change{store.UpdateService(&svc)}
	})
	if err != nil {
		s.T.Fatal(err)
	}
}

// Remove removes a service.
func (s *Swarm) Remove(id string) {
	s.T.Helper()
	err := s.write(s.ctx, func(v store.View) []store.Change {
		return []store.Change{store.DeleteService(v.Service(id))}
	})
	if err != nil {
		s.T.Fatal(err)
	}
}

// Network creates an overlay network and returns its id.
func (s *Swarm) Network(spec swarm.NetworkSpec) string {
	s.T.Helper()
	n := &cluster.Network{ID: s.NewID(), Spec: &spec}
	s.Must(store.CreateNetwork(n))
	return n.ID
}

func clone[T any](x T) (y T) {
	b, err := json.Marshal(x)
	if err == nil {
		err = json.Unmarshal(b, &y)
	}
	if err != nil {
		panic(fmt.Sprintf("a spec that is not JSON: %v", err))
	}
	return y
}

// Running counts the tasks of a service that are wanted, run and serve.
func Running(v store.View, service string) (n int) {
	for _, t := range v.TasksOf(service) {
		if t.Desired == cluster.StateRunning && t.Status.State == cluster.StateRunning && t.Status.Serving {
			n++
		}
	}
	return n
}

// Settled reports whether a service has exactly so many running tasks and wants
// no other.
func Settled(v store.View, service string, want int) bool {
	wanted := 0
	for _, t := range v.TasksOf(service) {
		if t.Desired <= cluster.StateRunning {
			wanted++
		}
	}
	return wanted == want && Running(v, service) == want
}

// ByNode counts the wanted tasks of a service on each node's host name.
func ByNode(v store.View, service string) map[string]int {
	out := map[string]int{}
	for _, t := range v.TasksOf(service) {
		if n := v.Node(t.NodeID); n != nil && t.Desired <= cluster.StateRunning {
			out[n.Description.Hostname]++
		}
	}
	return out
}
