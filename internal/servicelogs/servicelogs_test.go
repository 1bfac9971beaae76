package servicelogs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// fakeSwarm is a swarm of one service whose nodes are engines in this process.
type fakeSwarm struct {
	tasks func() []swarm.Task
	nodes map[string]*fakeEngine
}

func (f *fakeSwarm) Service(_ context.Context, ref string, _ bool) (swarm.Service, error) {
	if ref != "web" {
		return swarm.Service{}, cluster.NotFoundf("service %s not found", ref)
	}
	return swarm.Service{ID: "s0"}, nil
}

func (f *fakeSwarm) Task(_ context.Context, ref string) (swarm.Task, error) {
	for _, t := range f.tasks() {
		if t.ID == ref {
			return t, nil
		}
	}
	return swarm.Task{}, cluster.NotFoundf("task %s not found", ref)
}

func (f *fakeSwarm) Tasks(_ context.Context, filters map[string]map[string]bool) ([]swarm.Task, error) {
	var out []swarm.Task
	for _, t := range f.tasks() {
		if filters["service"]["s0"] || filters["id"][t.ID] {
			out = append(out, t)
		}
	}
	return out, nil
}

func (f *fakeSwarm) Open(ctx context.Context, node, kind string, req any) (Frames, error) {
	e := f.nodes[node]
	if e == nil || kind != Kind {
		return nil, cluster.Unavailablef("node %s is not available", node)
	}
	ctx, cancel := context.WithCancel(ctx)
	fr := &fakeFrames{data: make(chan []byte), err: make(chan error, 1), stop: cancel}
	go func() {
		decode := func(v any) error {
			raw, err := json.Marshal(req)
			if err != nil {
				return err
			}
			return json.Unmarshal(raw, v)
		}
		err := Serve(e)(ctx, decode, func(b []byte) error {
			select {
			case fr.data <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err == nil {
			err = io.EOF
		}
		fr.err <- err
	}()
	return fr, nil
}

type fakeFrames struct {
	data chan []byte
	err  chan error
	stop func()
}

func (f *fakeFrames) Next() ([]byte, error) {
	select {
	case b := <-f.data:
		return b, nil
	case err := <-f.err:
		return nil, err
	}
}
func (f *fakeFrames) Close() { f.stop() }

// fakeEngine has a container for each task, which has written lines.
type fakeEngine struct {
	lines map[string][]string
	fails error // after the lines
	attrs map[string]string
	more  chan struct{} // when it follows: closed when the container ends
}

func (f *fakeEngine) List(_ context.Context, opts engine.ListOptions) ([]container.Summary, error) {
	for task := range f.lines {
		if opts.Filters["label"][cluster.LabelTaskID+"="+task] {
			return []container.Summary{{ID: task}}, nil
		}
	}
	return nil, nil
}

func (f *fakeEngine) Logs(ctx context.Context, ref string, opts engine.LogsOptions, head func(bool), yield func(engine.LogEntry) error) error {
	head(false)
	for i, l := range f.lines[ref] {
		at := time.Unix(int64(i), 0)
		if at.Before(opts.Since) {
			continue
		}
		if err := yield(engine.LogEntry{Time: at, Stream: "stdout", Line: []byte(l), Attrs: f.attrs}); err != nil {
			return err
		}
	}
	if f.fails != nil {
		err := f.fails
		f.fails = nil
		return err
	}
	if opts.Follow {
		select {
		case <-f.more:
		case <-ctx.Done():
		}
	}
	return nil
}

func task(id, node string, state swarm.TaskState) swarm.Task {
	return swarm.Task{ID: id, ServiceID: "s0", NodeID: node, Status: swarm.TaskStatus{State: state}}
}

func collect(ctx context.Context, f *fakeSwarm, service, task string, opts engine.LogsOptions) ([]string, error) {
	var got []string
	r := &Reader{Control: f, Nodes: f}
	err := r.Logs(ctx, service, task, opts, func(bool) {}, func(e Entry) error {
		got = append(got, fmt.Sprintf("%s@%s %s", e.TaskID, e.NodeID, e.Line))
		return nil
	})
	slices.Sort(got)
	return got, err
}

func TestAllTasksOfAService(t *testing.T) {
	f := &fakeSwarm{
		tasks: func() []swarm.Task {
			return []swarm.Task{task("t1", "n1", swarm.TaskStateRunning), task("t2", "n2", swarm.TaskStateFailed),
				task("t3", "n1", swarm.TaskStateShutdown), task("t4", "", swarm.TaskStatePending), task("t5", "n9", swarm.TaskStateRunning)}
		},
		nodes: map[string]*fakeEngine{
			"n1": {lines: map[string][]string{"t1": {"a", "b"}}}, // t3's container is gone
			"n2": {lines: map[string][]string{"t2": {"c\xff"}}},
		},
	}
	got, err := collect(t.Context(), f, "web", "", engine.LogsOptions{Stdout: true, Tail: -1})
	if diff := cmp.Diff([]string{"t1@n1 a", "t1@n1 b", "t2@n2 c\xff"}, got); diff != "" {
		t.Error(diff)
	}
	want := "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node n9 is not available"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	f.nodes["n1"].attrs = map[string]string{"tier": "front"}
	r := &Reader{Control: f, Nodes: f}
	err = r.Logs(t.Context(), "", "t1", engine.LogsOptions{Stdout: true, Tail: -1}, func(bool) {}, func(e Entry) error {
		if e.Attrs["tier"] != "front" {
			t.Errorf("%s: attributes %v", e.Line, e.Attrs)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	got, err = collect(t.Context(), f, "", "t2", engine.LogsOptions{Stdout: true, Tail: -1})
	if diff := cmp.Diff([]string{"t2@n2 c\xff"}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := collect(t.Context(), f, "nosuch", "", engine.LogsOptions{}); err == nil || !strings.Contains(err.Error(), "service nosuch not found") {
		t.Errorf("got %v", err)
	}
}

func TestFollowTakesUpNewTasksAndNodesThatComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		n1 := &fakeEngine{lines: map[string][]string{"t1": {"a", "b"}, "t2": {"new"}}, fails: errors.New("connection lost"), more: make(chan struct{})}
		f := &fakeSwarm{
			tasks: func() []swarm.Task {
				all := []swarm.Task{task("t1", "n1", swarm.TaskStateRunning)}
				if time.Since(start) > 10*time.Second {
					all = append(all, task("t2", "n1", swarm.TaskStateRunning))
				}
				return all
			},
			nodes: map[string]*fakeEngine{"n1": n1},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		got, err := collect(ctx, f, "web", "", engine.LogsOptions{Stdout: true, Follow: true, Tail: -1})
		if diff := cmp.Diff([]string{"t1@n1 a", "t1@n1 b", "t2@n1 new"}, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	})
}

func TestAReaderThatHasHadEnoughEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSwarm{
			tasks: func() []swarm.Task { return []swarm.Task{task("t1", "n1", swarm.TaskStateRunning)} },
			nodes: map[string]*fakeEngine{"n1": {lines: map[string][]string{"t1": {"a", "b", "c"}}, more: make(chan struct{})}},
		}
		enough := errors.New("enough")
		r := &Reader{Control: f, Nodes: f}
		err := r.Logs(t.Context(), "web", "", engine.LogsOptions{Stdout: true, Follow: true, Tail: -1}, func(bool) {}, func(Entry) error { return enough })
		if !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
		// synctest fails the test if a goroutine is left behind.
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"t":1,"l":"YQ=="}`))
	f.Fuzz(func(t *testing.T, data []byte) { decode(data) })
}
