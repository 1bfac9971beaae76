package servicelogs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// Frames is what a node sends; see dispatch.Frames.
type Frames interface {
	Next() ([]byte, error)
	Close()
}

// Nodes opens a stream on a node. One that cannot be reached is
// errdefs.ErrUnavailable.
type Nodes interface {
	Open(ctx context.Context, nodeID, kind string, req any) (Frames, error)
}

// Control is what a manager's end needs of the swarm's state.
type Control interface {
	Service(ctx context.Context, ref string, insertDefaults bool) (swarm.Service, error)
	Task(ctx context.Context, ref string) (swarm.Task, error)
	Tasks(ctx context.Context, filters map[string]map[string]bool) ([]swarm.Task, error)
}

// Entry is a piece of a task's log, and whose it is.
type Entry struct {
	engine.LogEntry
	NodeID, ServiceID, TaskID string
}

// Times of a reader that follows.
const (
	lookAgain = time.Second     // for tasks that came up meanwhile
	retryNode = 3 * time.Second // after a node went away
)

// Reader reads the logs of tasks on whichever nodes they run.
type Reader struct {
	Control Control
	Nodes   Nodes
}

// Logs yields the entries of a service's tasks, or of one task: one of service
// and task is set. It calls head first. yield is called by one goroutine at a
// time, in the order in which entries arrive. When it follows, tasks that come
// up are followed too, and a node that went away is asked again, from where it
// was. When it does not, an error at the end names the nodes that did not answer.
func (r *Reader) Logs(ctx context.Context, service, task string, opts engine.LogsOptions, head func(tty bool), yield func(Entry) error) error {
	sel, tty, err := r.find(ctx, service, task)
	if err != nil {
		return err
	}
	head(tty)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := &reading{Reader: r, opts: opts, entries: make(chan Entry), begun: map[string]bool{}}
	ended := make(chan error, 1)
	go func() {
		ended <- read.all(ctx, sel)
		close(read.entries)
	}()
	for e := range read.entries {
		if err == nil {
			if err = yield(e); err != nil {
				cancel() // and drain, so that nobody is left behind
			}
		}
	}
	if err != nil {
		return err
	}
	return <-ended
}

// find resolves what is asked for to a filter on tasks.
func (r *Reader) find(ctx context.Context, service, task string) (sel map[string]map[string]bool, tty bool, err error) {
	if task != "" {
		t, err := r.Control.Task(ctx, task)
		if err != nil {
			return nil, false, err
		}
		c := t.Spec.ContainerSpec
		return map[string]map[string]bool{"id": {t.ID: true}}, c != nil && c.TTY, nil
	}
	s, err := r.Control.Service(ctx, service, false)
	if err != nil {
		return nil, false, err
	}
	c := s.Spec.TaskTemplate.ContainerSpec
	return map[string]map[string]bool{"service": {s.ID: true}}, c != nil && c.TTY, nil
}

// reading is one call of Logs. all owns begun; the goroutines it starts only
// send entries and their results.
type reading struct {
	*Reader
	opts    engine.LogsOptions
	entries chan Entry
	begun   map[string]bool
}

// result is how the reading of one task ended.
type result struct {
	node string
	err  error
}

// all reads every task, those that come up later too when it follows.
func (r *reading) all(ctx context.Context, sel map[string]map[string]bool) error {
	results := make(chan result)
	running := 0
	missing := map[string]bool{}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			tasks, err := r.Control.Tasks(ctx, sel)
			if err != nil && !r.opts.Follow {
				return err
			}
			for _, t := range tasks {
				if r.begun[t.ID] || !hasLog(t) {
					continue
				}
				r.begun[t.ID] = true
				running++
				go func() { results <- result{t.NodeID, r.task(ctx, t)} }()
			}
			if r.opts.Follow {
				again.Reset(lookAgain)
			}
		case res := <-results:
			running--
			if res.err != nil {
				missing[res.node] = true
			}
		case <-ctx.Done():
			for ; running > 0; running-- {
				<-results
			}
			return nil
		}
		one := len(sel["id"]) > 0 && len(r.begun) > 0 // one task, whose log ends with it
		if running == 0 && (one || !r.opts.Follow) {
			return incomplete(missing)
		}
	}
}

// hasLog reports whether a task got far enough to have a container.
func hasLog(t swarm.Task) bool {
	if t.NodeID == "" {
		return false
	}
	switch t.Status.State {
	case swarm.TaskStateNew, swarm.TaskStatePending, swarm.TaskStateAssigned, swarm.TaskStateAccepted,
		swarm.TaskStatePreparing, swarm.TaskStateReady, swarm.TaskStateRejected:
		return false
	}
	return true
}

// incomplete says which nodes did not answer, in Docker's words.
func incomplete(missing map[string]bool) error {
	if len(missing) == 0 {
		return nil
	}
	var why []string
	for node := range missing {
		why = append(why, fmt.Sprintf("node %s is not available", node))
	}
	slices.Sort(why)
	return cluster.Unavailablef("warning: incomplete log stream. some logs could not be retrieved for the following reasons: %s", strings.Join(why, ", "))
}

// task reads one task's log to its end. When it follows it goes on after a node
// was away, and ends with the task.
func (r *reading) task(ctx context.Context, t swarm.Task) error {
	req := Request{
		Task: t.ID, Stdout: r.opts.Stdout, Stderr: r.opts.Stderr, Follow: r.opts.Follow,
		Tail: r.opts.Tail, Since: r.opts.Since, Until: r.opts.Until,
	}
	for {
		last, err := r.once(ctx, t, req)
		if err == nil || ctx.Err() != nil || !r.opts.Follow {
			return err
		}
		if !last.IsZero() {
			req.Since, req.Tail = last.Add(time.Nanosecond), -1
		}
		select {
		case <-time.After(retryNode):
		case <-ctx.Done():
			return nil
		}
	}
}

// once reads until the stream ends and returns the time of its last entry.
func (r *reading) once(ctx context.Context, t swarm.Task, req Request) (last time.Time, err error) {
	frames, err := r.Nodes.Open(ctx, t.NodeID, Kind, req)
	if err != nil {
		return last, err
	}
	defer frames.Close()
	for {
		data, err := frames.Next()
		switch {
		case errors.Is(err, io.EOF), errdefs.IsNotFound(err):
			return last, nil
		case err != nil:
			return last, err
		}
		e, err := decode(data)
		if err != nil {
			return last, err
		}
		last = e.Time
		select {
		case r.entries <- Entry{LogEntry: e, NodeID: t.NodeID, ServiceID: t.ServiceID, TaskID: t.ID}:
		case <-ctx.Done():
			return last, nil
		}
	}
}
