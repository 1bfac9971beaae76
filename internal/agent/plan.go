package agent

import (
	"fmt"

	"github.com/skep-dev/skep/internal/cluster"
)

// step is what a worker does next about its task.
type step int

const (
	idle    step = iota // nothing until something else is wanted
	prepare             // fetch the image, make the container
	start               // start it and wait until it is healthy
	watch               // wait for its end
	stop                // end it
	remove              // end it and take it away
	done                // forget the task
)

func (s step) String() string {
	return [...]string{"idle", "prepare", "start", "watch", "stop", "remove", "done"}[s]
}

// next says what to do about a task: from what is wanted of it (gone: it is not
// mentioned any more), how far it has come, and whether its container has been
// removed.
func next(desired cluster.State, gone bool, have cluster.State, removed bool) step {
	switch {
	case gone && removed:
		return done
	case (gone || desired >= cluster.StateRemove) && !removed:
		return remove
	case have.Terminal() || removed:
		return idle
	case desired >= cluster.StateShutdown:
		return stop
	case have < cluster.StateReady:
		return prepare
	case have == cluster.StateReady && desired < cluster.StateRunning:
		return idle
	case have < cluster.StateRunning:
		return start
	}
	return watch
}

// exitError is a task's end with another exit code than 0, in Docker's words.
type exitError struct {
	code  int
	cause string
}

func (e exitError) Error() string {
	switch {
	case e.code == 0:
		return "task: " + e.cause
	case e.cause != "":
		return fmt.Sprintf("task: non-zero exit (%d): %s", e.code, e.cause)
	}
	return fmt.Sprintf("task: non-zero exit (%d)", e.code)
}

// ended turns a container's end into a status.
func ended(st cluster.Status, c Container, cause string) cluster.Status {
	st.Serving, st.ExitCode, st.PID = false, c.ExitCode, 0
	if c.ExitCode == 0 && cause == "" {
		st.State, st.Message, st.Err = cluster.StateComplete, "finished", ""
		return st
	}
	if cause == "" {
		cause = c.Err
	}
	st.State, st.Err = cluster.StateFailed, exitError{c.ExitCode, cause}.Error()
	return st
}

// failed turns an error that will not pass into a status: before the start the
// node refuses the task, afterwards the task has failed.
func failed(st cluster.Status, err error) cluster.Status {
	st.Serving, st.Err = false, err.Error()
	if st.State < cluster.StateStarting {
		st.State = cluster.StateRejected
	} else {
		st.State = cluster.StateFailed
	}
	return st
}
