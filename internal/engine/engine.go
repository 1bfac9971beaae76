// Package engine runs containers on containerd: their life cycle, exec, attach,
// logs, health, events and restart policies. It owns the container records under
// the data root and the containerd that runs in this process. It never knows of
// swarms. httpapi and agent call it, with the Engine API's own types.
package engine

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

var errTodo = cluster.NotImplementedf("not implemented")

// Engine holds the containers of one daemon. A ref is a container's name, its id
// or a unique prefix of it; an unknown one is errdefs.ErrNotFound with Docker's
// words ("No such container: x").
type Engine struct{}

// CreateRequest is what Create makes a container from.
type CreateRequest struct {
	Name     string // "" picks one
	Request  container.CreateRequest
	Platform *ocispec.Platform
	// Swarm marks a container the agent made for a task: it is shown by ps like
	// any other but its restart is the agent's business, and its networks are
	// given as ready endpoints.
	Swarm bool
}

// StopOptions are those of stop and restart. A nil Timeout means the container's own.
type StopOptions struct {
	Signal  string
	Timeout *int
}

// RemoveOptions are those of rm.
type RemoveOptions struct{ Force, Volumes, Link bool }

// ListOptions are those of ps. Filters holds the API's filters, key to values.
type ListOptions struct {
	All, Size bool
	Limit     int
	Filters   map[string]map[string]bool
}

// LogsOptions are those of logs. Tail < 0 means all.
type LogsOptions struct {
	Stdout, Stderr, Follow bool
	Tail                   int
	Since, Until           time.Time
}

// LogEntry is one line (or part of one) that a container wrote.
type LogEntry struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Line    []byte // with its newline, if it had one
	Partial bool
}

// Streams are the caller's ends of an attach or exec. A nil one is not wanted.
type Streams struct {
	Stdin  io.ReadCloser
	Stdout io.Writer
	Stderr io.Writer // unused with a terminal
}

// AttachOptions are those of attach. Ready, if set, is called once the streams
// are connected and before anything is copied.
type AttachOptions struct {
	Stream, Logs bool
	DetachKeys   string
	Streams      Streams
	Ready        func()
}

// WaitResult is how a container ended.
type WaitResult struct {
	ExitCode int
	Err      string
}

// Create makes a container and does not start it.
func (e *Engine) Create(ctx context.Context, req CreateRequest) (container.CreateResponse, error) {
	return container.CreateResponse{}, errTodo
}

// Start starts a container; on a running one it does nothing and returns errdefs.ErrNotModified's kin nil.
func (e *Engine) Start(ctx context.Context, ref string) error { return errTodo }

// Stop sends the stop signal, then after the timeout KILL; on an ended container it does nothing.
func (e *Engine) Stop(ctx context.Context, ref string, opts StopOptions) error { return errTodo }

// Restart stops and starts a container.
func (e *Engine) Restart(ctx context.Context, ref string, opts StopOptions) error { return errTodo }

// Kill sends a signal (KILL when empty).
func (e *Engine) Kill(ctx context.Context, ref, signal string) error { return errTodo }

// Pause freezes a container.
func (e *Engine) Pause(ctx context.Context, ref string) error { return errTodo }

// Unpause thaws one.
func (e *Engine) Unpause(ctx context.Context, ref string) error { return errTodo }

// Remove removes a container and what belongs to it.
func (e *Engine) Remove(ctx context.Context, ref string, opts RemoveOptions) error { return errTodo }

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, ref, name string) error { return errTodo }

// Resize sets the size of a container's terminal.
func (e *Engine) Resize(ctx context.Context, ref string, height, width uint32) error { return errTodo }

// Wait returns a channel that yields once, when the condition is met.
func (e *Engine) Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan WaitResult, error) {
	return nil, errTodo
}

// List returns what ps shows, newest first.
func (e *Engine) List(ctx context.Context, opts ListOptions) ([]container.Summary, error) {
	return nil, errTodo
}

// Inspect returns everything about a container.
func (e *Engine) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	return container.InspectResponse{}, errTodo
}

// Top lists a container's processes as ps would.
func (e *Engine) Top(ctx context.Context, ref, args string) (container.TopResponse, error) {
	return container.TopResponse{}, errTodo
}

// Stats returns one sample of a container's use of resources.
func (e *Engine) Stats(ctx context.Context, ref string) (container.StatsResponse, error) {
	return container.StatsResponse{}, errTodo
}

// Logs calls yield for each entry until there is no more, yield returns an
// error, or ctx ends. It reports whether the container has a terminal first, by
// calling head.
func (e *Engine) Logs(ctx context.Context, ref string, opts LogsOptions, head func(tty bool), yield func(LogEntry) error) error {
	return errTodo
}

// Attach connects streams to a running container's and returns when the
// container ends, the output ends, or the detach keys are typed.
func (e *Engine) Attach(ctx context.Context, ref string, opts AttachOptions) error { return errTodo }

// ExecCreate makes an exec in a running container and returns its id.
func (e *Engine) ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	return "", errTodo
}

// ExecStart runs an exec with the given streams until its process ends; with
// detach it returns once the process runs. size is the terminal's, or nil.
func (e *Engine) ExecStart(ctx context.Context, id string, detach bool, size *[2]uint, streams Streams, ready func()) error {
	return errTodo
}

// ExecResize sets the size of an exec's terminal.
func (e *Engine) ExecResize(ctx context.Context, id string, height, width uint32) error {
	return errTodo
}

// ExecInspect returns what is known of an exec.
func (e *Engine) ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error) {
	return container.ExecInspectResponse{}, errTodo
}

// Events calls yield for each event from since (zero: now) on, until ctx or
// until (zero: never) ends. Every room that changes something a user can see
// publishes here through Publish.
func (e *Engine) Events(ctx context.Context, since, until time.Time, filters map[string]map[string]bool, yield func(events.Message) error) error {
	return errTodo
}

// Publish records an event and hands it to the listeners.
func (e *Engine) Publish(typ events.Type, action events.Action, actor events.Actor) {}
