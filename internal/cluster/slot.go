package cluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// What the loops agree on about services, their places and the tasks in them.
// They never call each other, so what two of them must see alike stands here.

// Place is one slot of a replicated service or one node of a global one, with
// all its tasks: the wanted ones, those that are stopping, and the history.
type Place struct {
	Key   SlotKey
	Tasks []*Task // oldest first
}

// Places sorts a service's tasks (as the store lists them) into their places,
// in order of slot and node.
func Places(tasks []*Task) []Place {
	var out []Place
	for _, t := range tasks {
		k := t.Key()
		if len(out) == 0 || out[len(out)-1].Key != k {
			out = append(out, Place{Key: k})
		}
		p := &out[len(out)-1]
		p.Tasks = append(p.Tasks, t)
	}
	for _, p := range out {
		slices.SortStableFunc(p.Tasks, func(a, b *Task) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
	}
	return out
}

// Wanted returns the tasks of the place that are wanted to run, now or soon.
func (p Place) Wanted() []*Task {
	var out []*Task
	for _, t := range p.Tasks {
		if t.Desired <= StateRunning {
			out = append(out, t)
		}
	}
	return out
}

// Finished returns the place's last task if it ended by itself and its restart
// policy leaves it at that; nil otherwise. Such a place is taken, though nothing
// runs in it.
func (p Place) Finished(policy func(*Task) Restart) *Task {
	if len(p.Tasks) == 0 || len(p.Wanted()) > 0 {
		return nil
	}
	last := p.Tasks[len(p.Tasks)-1]
	if last.Desired != StateShutdown || !last.EndedByItself() || policy(last).Again(last, p.Tasks) {
		return nil
	}
	return last
}

// EndedByItself reports whether the task has ended without having been told to.
func (t *Task) EndedByItself() bool {
	return t.Status.State == StateComplete || t.Status.State == StateFailed || t.Status.State == StateRejected
}

// MayBeAlive reports whether a container of the task may still run: a node has
// heard of it and has not said that it ended.
func (t *Task) MayBeAlive() bool {
	return t.Status.State >= StateAssigned && t.Status.State <= StateRunning
}

// Restart is a task's restart policy with the defaults filled in.
type Restart struct {
	Condition   swarm.RestartPolicyCondition
	Delay       time.Duration
	MaxAttempts int           // 0: no limit
	Window      time.Duration // attempts older than this do not count; 0: all count
}

// RestartOf returns the restart policy of a service's spec.
func RestartOf(spec *swarm.ServiceSpec) Restart {
	r := Restart{Condition: swarm.RestartPolicyConditionAny, Delay: 5 * time.Second}
	if spec == nil || spec.TaskTemplate.RestartPolicy == nil {
		return r
	}
	p := spec.TaskTemplate.RestartPolicy
	if p.Condition != "" {
		r.Condition = p.Condition
	}
	if p.Delay != nil {
		r.Delay = *p.Delay
	}
	if p.MaxAttempts != nil {
		r.MaxAttempts = int(*p.MaxAttempts)
	}
	if p.Window != nil {
		r.Window = *p.Window
	}
	return r
}

// Again reports whether a task that ended is to be replaced. Attempts are
// counted from the place's history: tasks of the same version that ended by
// themselves before this one.
func (r Restart) Again(ended *Task, place []*Task) bool {
	switch r.Condition {
	case swarm.RestartPolicyConditionAny:
	case swarm.RestartPolicyConditionOnFailure:
		if ended.Status.State == StateComplete {
			return false
		}
	default:
		return false
	}
	if r.MaxAttempts <= 0 {
		return true
	}
	spent := 0
	for _, t := range place {
		if t == ended || t.ID == ended.ID || t.SpecVersion != ended.SpecVersion || !t.EndedByItself() ||
			t.CreatedAt.After(ended.CreatedAt) {
			continue
		}
		if r.Window > 0 && ended.Status.At.Sub(t.Status.At) > r.Window {
			continue
		}
		spent++
	}
	return spent < r.MaxAttempts
}

// UpdateOf returns how to go about an update or a rollback, with the defaults
// filled in.
func UpdateOf(config *swarm.UpdateConfig) swarm.UpdateConfig {
	c := swarm.UpdateConfig{Parallelism: 1}
	if config != nil {
		c = *config
	}
	if c.Monitor <= 0 {
		c.Monitor = 5 * time.Second
	}
	c.FailureAction = cmp.Or(c.FailureAction, swarm.UpdateFailureActionPause)
	c.Order = cmp.Or(c.Order, swarm.UpdateOrderStopFirst)
	return c
}

// OldTaskTimeout is how long a replacement waits for the task it replaces to
// stop before it starts beside it.
const OldTaskTimeout = time.Minute

// NewTask makes a task for a place of the service, with the service's present
// spec. It has no id yet: whoever proposes it gives it one.
func NewTask(svc *Service, key SlotKey, desired State, notBefore time.Time) *Task {
	return &Task{
		ServiceID: svc.ID, SpecVersion: svc.SpecVersion, Slot: key.Slot, NodeID: key.NodeID,
		Desired: desired, NotBefore: notBefore, Iteration: svc.JobIteration,
		Status: Status{State: StateNew, Message: "created"},
	}
}

// specChange is how far two versions of a service's spec are apart.
type specChange int

const (
	specSame        specChange = iota // tasks of the one are tasks of the other
	specConstraints                   // only placement constraints differ; a task is kept where it still fits
	specDifferent                     // tasks must be replaced
)

// compareSpecs says what it means for tasks of the spec of that cur is wanted
// now: only the task template and the endpoint count.
func compareSpecs(cur, of *swarm.ServiceSpec) specChange {
	if cur == of {
		return specSame
	}
	if !sameEndpoint(cur.EndpointSpec, of.EndpointSpec) {
		return specDifferent
	}
	if same(cur.TaskTemplate, of.TaskTemplate) {
		return specSame
	}
	a, b := cur.TaskTemplate, of.TaskTemplate
	a.Placement, b.Placement = placementButConstraints(a.Placement), placementButConstraints(b.Placement)
	if same(a, b) {
		return specConstraints
	}
	return specDifferent
}

// Outdated tells which tasks of a service an update must replace. It compares
// each version of the spec once.
type Outdated struct {
	svc      *Service
	v        view
	compared map[uint64]specChange
}

// view is what Outdated reads of the state; a store.View is one.
type view interface {
	SpecOf(serviceID string, version uint64) *ServiceSpecVersion
	Node(id string) *Node
}

// NewOutdated returns the judge of a service's tasks in one view of the store.
func NewOutdated(svc *Service, v view) Outdated {
	return Outdated{svc, v, map[uint64]specChange{svc.SpecVersion: specSame}}
}

// Has reports whether a task must be replaced: its spec is another than the one
// that is wanted now, in more than constraints that its node meets.
func (o Outdated) Has(t *Task) bool {
	c, known := o.compared[t.SpecVersion]
	if !known {
		c = specDifferent // also where nobody knows the version any more
		if of := o.v.SpecOf(t.ServiceID, t.SpecVersion); of != nil {
			c = compareSpecs(o.svc.Spec, of.Spec)
		}
		o.compared[t.SpecVersion] = c
	}
	if c != specConstraints {
		return c == specDifferent
	}
	n := o.v.Node(t.NodeID)
	if n == nil {
		return true
	}
	cs, err := ParseConstraints(ConstraintsOf(o.svc.Spec))
	return err != nil || !MatchAll(cs, n)
}

// same compares templates as they are logged: a list that is empty and one that
// is not there are the same.
func same(a, b swarm.TaskSpec) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func sameEndpoint(a, b *swarm.EndpointSpec) bool {
	norm := func(e *swarm.EndpointSpec) swarm.EndpointSpec {
		out := swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
		if e == nil {
			return out
		}
		out.Mode = cmp.Or(e.Mode, swarm.ResolutionModeVIP)
		out.Ports = slices.Clone(e.Ports)
		slices.SortFunc(out.Ports, swarm.PortConfig.Compare)
		if len(out.Ports) == 0 {
			out.Ports = nil
		}
		return out
	}
	return reflect.DeepEqual(norm(a), norm(b))
}

func placementButConstraints(p *swarm.Placement) *swarm.Placement {
	if p == nil {
		return &swarm.Placement{}
	}
	c := *p
	c.Constraints = nil
	if len(c.Preferences) == 0 {
		c.Preferences = nil
	}
	if len(c.Platforms) == 0 {
		c.Platforms = nil
	}
	return &c
}

// ConstraintsOf returns the placement constraints of a spec as users wrote them.
func ConstraintsOf(spec *swarm.ServiceSpec) []string {
	if spec == nil || spec.TaskTemplate.Placement == nil {
		return nil
	}
	return spec.TaskTemplate.Placement.Constraints
}

// ReservationsOf returns what a spec's tasks reserve; the zero value if nothing.
func ReservationsOf(spec *swarm.ServiceSpec) swarm.Resources {
	if spec == nil || spec.TaskTemplate.Resources == nil || spec.TaskTemplate.Resources.Reservations == nil {
		return swarm.Resources{}
	}
	return *spec.TaskTemplate.Resources.Reservations
}

// IngressPorts reports whether a spec publishes ports through the routing mesh.
func IngressPorts(spec *swarm.ServiceSpec) bool {
	if spec == nil || spec.EndpointSpec == nil {
		return false
	}
	return slices.ContainsFunc(spec.EndpointSpec.Ports, func(p swarm.PortConfig) bool { return !HostPort(p) })
}

// HostPort reports whether a port is published on the task's own node alone.
func HostPort(p swarm.PortConfig) bool { return p.PublishMode == swarm.PortConfigPublishModeHost }

// DNSRR reports whether a spec wants no virtual address.
func DNSRR(spec *swarm.ServiceSpec) bool {
	return spec != nil && spec.EndpointSpec != nil && spec.EndpointSpec.Mode == swarm.ResolutionModeDNSRR
}

// Down reports whether the node is known to run nothing any more. Unknown is not
// down: its tasks are left alone.
func (n *Node) Down() bool { return n == nil || n.Status.State == swarm.NodeStateDown }

// Draining reports whether users want no task on the node.
func (n *Node) Draining() bool {
	return n.Spec != nil && n.Spec.Availability == swarm.NodeAvailabilityDrain
}

// Paused reports whether users want no new task on the node.
func (n *Node) Paused() bool {
	return n.Spec != nil && n.Spec.Availability == swarm.NodeAvailabilityPause
}

// ParseAvailability checks an availability as users write it; "" is active.
func ParseAvailability(a swarm.NodeAvailability) (swarm.NodeAvailability, error) {
	switch a {
	case "":
		return swarm.NodeAvailabilityActive, nil
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
		return a, nil
	}
	return "", Invalidf("invalid Availability: %q", string(a))
}

// Ready reports whether the node is up and may be given tasks.
func (n *Node) Ready() bool {
	return n != nil && n.Status.State == swarm.NodeStateReady && !n.Draining() && !n.Paused()
}
