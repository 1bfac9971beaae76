package cluster

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Task is one wanted container on one node. It is a small record that points at
// the version of the spec it runs; the spec itself is stored once (see
// ServiceSpecVersion). Loops write what is wanted (all fields but Status), agents
// what is observed (Status).
type Task struct {
	ID        string
	Version   uint64
	CreatedAt time.Time
	UpdatedAt time.Time
	// Wants is the log index of the last write by a loop. A loop's write names
	// the Wants it read and is refused when it is stale; a status never
	// conflicts with a loop's write.
	Wants uint64

	ServiceID   string // "" for a network attachment of a plain container
	SpecVersion uint64
	Slot        int    // 1… for replicated services; 0 for global ones
	NodeID      string // "" until assigned; set from the start for global ones
	Desired     State
	// NotBefore is when a task held at desired READY may be wanted RUNNING (the
	// restart delay); zero when it need not wait for the clock.
	NotBefore time.Time
	// Rejected says why the managers stop a task that fitted its node and does no
	// longer. It keeps what it holds until it has ended; see Final.
	Rejected string
	// Networks holds the task's addresses, made by allocate.
	Networks  []Attachment
	Iteration uint64 // JobIteration of a job's task
	// Attach is set for a network attachment of a plain container, which has no service.
	Attach *Attach

	Status Status
}

// Attach describes a plain container that joins an attachable network.
type Attach struct {
	NetworkID   string
	ContainerID string
	Wanted      netip.Addr // the address the user asked for, or zero
	Names       []string   // the names it answers to in the network
}

// Attachment is a task's place in one network.
type Attachment struct {
	NetworkID string
	Addr      netip.Addr
	Aliases   []string
}

// Status is what the node observed of a task (or, before it has one, what the
// leader did). Err is in Docker's words; Message is what the state means.
type Status struct {
	State       State
	At          time.Time
	Message     string
	Err         string
	ContainerID string
	PID         int
	ExitCode    int
	Ports       []swarm.PortConfig // host-mode ports as they were bound
	// Serving is set while the task is running and, if it has a health check,
	// healthy. Only serving tasks are in the balancers.
	Serving bool
}

// Final returns what an observed status means for the task: one that the managers
// stopped because it no longer fits its node was, in the end, rejected.
func (t *Task) Final(st Status) Status {
	if t.Rejected != "" && st.State.Terminal() && st.State < StateRejected {
		st.State, st.Message, st.Err = StateRejected, "task rejected by constraint enforcer", t.Rejected
	}
	return st
}

// Name returns the task's name: service.slot.id, or service.node.id for a
// global service's. It is also the name of its container.
func (t *Task) Name(service string) string {
	if t.Slot > 0 {
		return fmt.Sprintf("%s.%d.%s", service, t.Slot, t.ID)
	}
	return fmt.Sprintf("%s.%s.%s", service, t.NodeID, t.ID)
}

// The labels that mark a task's container, Docker's.
const (
	LabelTask        = "com.docker.swarm.task"
	LabelTaskID      = "com.docker.swarm.task.id"
	LabelTaskName    = "com.docker.swarm.task.name"
	LabelNodeID      = "com.docker.swarm.node.id"
	LabelServiceID   = "com.docker.swarm.service.id"
	LabelServiceName = "com.docker.swarm.service.name"
)

// Active reports whether the task occupies its slot: wanted to run and not ended.
func (t *Task) Active() bool {
	return t.Desired <= StateRunning && t.Status.State <= StateRunning
}

// SlotKey names the place a task fills in its service: its slot, or its node
// for a global service's task.
type SlotKey struct {
	Slot   int
	NodeID string
}

// Key returns the place t fills.
func (t *Task) Key() SlotKey {
	if t.Slot > 0 {
		return SlotKey{Slot: t.Slot}
	}
	return SlotKey{NodeID: t.NodeID}
}
