package cluster

import "github.com/moby/moby/api/types/swarm"

// State is how far a task has come, or how far it should come. A task's observed
// state never decreases. The numbers leave room and are part of the log's format.
type State uint16

// The states of a task, in the order in which it passes them.
const (
	StateNew       State = 0   // wanted, nothing decided yet
	StatePending   State = 64  // has its addresses, waits for a node
	StateAssigned  State = 192 // has a node
	StateAccepted  State = 256 // the node has heard of it
	StatePreparing State = 320 // image and volumes are being made ready
	StateReady     State = 384 // prepared; waits to be wanted RUNNING
	StateStarting  State = 448
	StateRunning   State = 512
	StateComplete  State = 576 // ended by itself, exit code 0
	StateShutdown  State = 640 // ended because it was told to
	StateFailed    State = 704 // ended by itself, with an error
	StateRejected  State = 768 // the node could not even start it
	StateRemove    State = 800 // desired only: stop it and forget it
	StateOrphaned  State = 832 // its node is gone for good
)

var stateNames = map[State]swarm.TaskState{
	StateNew: swarm.TaskStateNew, StatePending: swarm.TaskStatePending,
	StateAssigned: swarm.TaskStateAssigned, StateAccepted: swarm.TaskStateAccepted,
	StatePreparing: swarm.TaskStatePreparing, StateReady: swarm.TaskStateReady,
	StateStarting: swarm.TaskStateStarting, StateRunning: swarm.TaskStateRunning,
	StateComplete: swarm.TaskStateComplete, StateShutdown: swarm.TaskStateShutdown,
	StateFailed: swarm.TaskStateFailed, StateRejected: swarm.TaskStateRejected,
	StateRemove: swarm.TaskStateRemove, StateOrphaned: swarm.TaskStateOrphaned,
}

// API returns the Engine API's name of s.
func (s State) API() swarm.TaskState { return stateNames[s] }

// String returns the Engine API's name of s.
func (s State) String() string { return string(stateNames[s]) }

// Terminal reports whether a task observed in s will never run again.
func (s State) Terminal() bool { return s > StateRunning }
