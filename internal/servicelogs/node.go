// Package servicelogs carries the logs of tasks from the nodes they run on to
// the manager that a user asks. It knows neither HTTP nor how nodes and managers
// reach each other: daemon gives it both. It keeps nothing.
package servicelogs

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// Kind is the kind of stream that carries logs.
const Kind = "logs"

// Request asks a node for the log of one of its tasks.
type Request struct {
	Task                   string
	Stdout, Stderr, Follow bool
	Tail                   int
	Since, Until           time.Time
}

// entry is one piece of a log on its way: an engine.LogEntry.
type entry struct {
	Time    int64 `json:"t"` // in nanoseconds since 1970
	Stderr  bool  `json:"e,omitempty"`
	Partial bool  `json:"p,omitempty"`
	// Line is the text; JSON carries bytes in base64, so that any are welcome.
	Line  []byte            `json:"l"`
	Attrs map[string]string `json:"a,omitempty"`
}

// Engine is what a node's end needs of its engine.
type Engine interface {
	List(ctx context.Context, opts engine.ListOptions) ([]container.Summary, error)
	Logs(ctx context.Context, ref string, opts engine.LogsOptions, head func(tty bool), yield func(engine.LogEntry) error) error
}

// Serve answers managers' requests on a node: it is a dispatch.StreamHandler of
// the kind Kind. A task whose container is gone has no log, which is no error.
func Serve(e Engine) func(ctx context.Context, decode func(any) error, send func([]byte) error) error {
	return func(ctx context.Context, decode func(any) error, send func([]byte) error) error {
		var req Request
		if err := decode(&req); err != nil {
			return cluster.Invalidf("logs: %v", err)
		}
		id, err := containerOf(ctx, e, req.Task)
		if err != nil || id == "" {
			return err
		}
		opts := engine.LogsOptions{
			Stdout: req.Stdout, Stderr: req.Stderr, Follow: req.Follow, Tail: req.Tail, Since: req.Since, Until: req.Until,
		}
		err = e.Logs(ctx, id, opts, func(bool) {}, func(l engine.LogEntry) error {
			data, err := json.Marshal(entry{Time: l.Time.UnixNano(), Stderr: l.Stream == "stderr", Partial: l.Partial, Line: l.Line, Attrs: l.Attrs})
			if err != nil {
				return err
			}
			return send(data)
		})
		if errdefs.IsNotFound(err) || ctx.Err() != nil {
			return nil
		}
		return err
	}
}

// containerOf returns the id of a task's container, or "".
func containerOf(ctx context.Context, e Engine, task string) (string, error) {
	if task == "" {
		return "", cluster.Invalidf("logs: no task is named")
	}
	list, err := e.List(ctx, engine.ListOptions{All: true, Filters: map[string]map[string]bool{"label": {cluster.LabelTaskID + "=" + task: true}}})
	if err != nil || len(list) == 0 {
		return "", err
	}
	return list[0].ID, nil
}

// decode reads what Serve sent.
func decode(data []byte) (engine.LogEntry, error) {
	var e entry
	if err := json.Unmarshal(data, &e); err != nil {
		return engine.LogEntry{}, fmt.Errorf("logs: a node's answer: %w", err)
	}
	stream := "stdout"
	if e.Stderr {
		stream = "stderr"
	}
	return engine.LogEntry{Time: time.Unix(0, e.Time).UTC(), Stream: stream, Line: e.Line, Partial: e.Partial, Attrs: e.Attrs}, nil
}
