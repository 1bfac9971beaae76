package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// service is containerd's task service, with the output of containers that ask
// for it served here.
type service struct {
	taskapi.TTRPCTaskService
	exits *exitWriter

	mu      sync.Mutex
	outputs map[string]*stdio.Output // by container; nil for one without
	busy    bool                     // something happened since takeBusy
}

func newService(inner taskapi.TTRPCTaskService, exits *exitWriter) *service {
	return &service{TTRPCTaskService: inner, exits: exits, outputs: map[string]*stdio.Output{}}
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.outputs)
}

func (s *service) takeBusy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.busy
	s.busy = false
	return b
}

// Create is containerd's, with the task's stdout and stderr led through two
// FIFOs to the Output that r.Stdout asks for.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	spec, ours, err := stdio.ParseURI(r.Stdout)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if !ours {
		resp, err := s.TTRPCTaskService.Create(ctx, r)
		if err == nil {
			s.keep(r.ID, nil)
		}
		return resp, err
	}
	out, err := stdio.OpenOutput(spec)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	stdout, stderr, err := openFIFOs(r)
	if err != nil {
		out.Close()
		return nil, errgrpc.ToGRPC(err)
	}
	s.exits.watch(r.ID, spec.Exit)
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		s.exits.forget(r.ID)
		out.Close()
		closeAll(stdout, stderr)
		return nil, err
	}
	// Only now does each FIFO have its writer: read before, it would look ended.
	if stderr == nil {
		out.Run(stdout, nil)
	} else {
		out.Run(stdout, stderr)
	}
	s.keep(r.ID, out)
	return resp, nil
}

func (s *service) keep(id string, out *stdio.Output) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outputs[id] = out
	s.busy = true
}

// Delete is containerd's, and returns once the output is in the log.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if err != nil || r.ExecID != "" {
		return resp, err
	}
	s.mu.Lock()
	out := s.outputs[r.ID]
	delete(s.outputs, r.ID)
	s.busy = true
	s.mu.Unlock()
	if out != nil {
		out.Wait(2 * time.Second)
	}
	s.exits.forget(r.ID)
	return resp, nil
}

// openFIFOs makes the FIFOs in the bundle, opens their reading ends and puts
// their paths into r.
func openFIFOs(r *taskapi.CreateTaskRequest) (stdout, stderr *os.File, err error) {
	r.Stdout = filepath.Join(r.Bundle, "stdout")
	if stdout, err = openFIFO(r.Stdout); err != nil {
		return nil, nil, err
	}
	r.Stderr = ""
	if r.Terminal {
		return stdout, nil, nil
	}
	r.Stderr = filepath.Join(r.Bundle, "stderr")
	if stderr, err = openFIFO(r.Stderr); err != nil {
		return nil, nil, errors.Join(err, stdout.Close())
	}
	return stdout, stderr, nil
}

func openFIFO(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("fifo %s: %w", path, err)
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// exitWriter takes the task service's events and keeps, as files, how first
// processes ended: a daemon that was away learns it even if the shim is gone too.
type exitWriter struct {
	mu    sync.Mutex
	paths map[string]string // container to file
}

func (w *exitWriter) watch(id, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if path != "" {
		w.paths[id] = path
	}
}

func (w *exitWriter) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.paths, id)
}

// Publish implements shim.Publisher.
func (w *exitWriter) Publish(_ context.Context, _ string, event events.Event) error {
	e, ok := event.(*eventtypes.TaskExit)
	if !ok || e.ID != e.ContainerID {
		return nil
	}
	w.mu.Lock()
	path := w.paths[e.ContainerID]
	w.mu.Unlock()
	if path == "" {
		return nil
	}
	data, err := json.Marshal(stdio.Exit{Code: int(e.ExitStatus), At: e.ExitedAt.AsTime()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		log.L.WithError(err).Error("exit code was not written")
	}
	return nil
}

// Close implements shim.Publisher.
func (w *exitWriter) Close() error { return nil }

var _ io.Closer = (*exitWriter)(nil)
