package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// Start starts a container; on a running one it does nothing.
func (e *Engine) Start(ctx context.Context, ref string) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	c.streak = 0
	c.mu.Unlock()
	c.dropRestart()
	err = e.start(e.whole(ctx), c)
	if err != nil && c.view().HostConfig.AutoRemove {
		e.removeLater(c)
	}
	return err
}

// start starts a container that the caller holds.
func (e *Engine) start(ctx context.Context, c *ctr) error {
	rec := c.view()
	switch {
	case c.isRemoved():
		return cluster.NotFoundf("No such container: %s", c.id)
	case rec.State.Status == container.StatePaused:
		return cluster.Conflictf("cannot start a paused container, try unpause instead")
	case rec.State.running():
		return nil
	case rec.State.Status == container.StateRemoving || rec.State.Status == container.StateDead:
		return cluster.Conflictf("container is marked for removal and cannot be started")
	}
	e.awaitEnd(c)
	r, err := e.launch(ctx, c, &rec)
	if err != nil {
		e.failed(ctx, c, rec, err)
		return err
	}
	now := time.Now().UTC()
	err = e.update(c, func(cur *record) {
		rec.Name, rec.Restarts = cur.Name, cur.Restarts // may have changed meanwhile
		rec.State = state{Status: container.StateRunning, Pid: rec.State.Pid, Started: now, Finished: cur.State.Finished, WasRunning: true}
		rec.State.Health = e.newHealth(rec)
		*cur = rec
		c.run = r
	})
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	e.emit(rec, events.ActionStart, nil)
	e.watch(c, r)
	e.checkHealth(c, r)
	return nil
}

// awaitEnd waits until the previous run's remains are cleared away.
func (e *Engine) awaitEnd(c *ctr) {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		<-r.ended
	}
}

// shimFile is the file of a bundle that names the shim its process is made in.
const shimFile = "shim"

// launch does all that lies between a record and a running process. What it has
// begun when it fails, it undoes.
func (e *Engine) launch(ctx context.Context, c *ctr, rec *record) (r *run, err error) {
	rec.RunDir = e.runDir(rec.ID) // the exec root may be another than it was
	c.mu.Lock()
	c.rec.RunDir = rec.RunDir
	c.mu.Unlock()
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	undo = append(undo, func() { _ = e.releaseVolumes(ctx, *rec); _ = removeBundle(rec.RunDir) })
	// Should the daemon die from here on, the next one sees by this directory that
	// there is something to clear away, and in it which shim may have the process.
	if err := os.MkdirAll(filepath.Join(rec.RunDir, "rootfs"), 0o711); err != nil {
		return nil, err
	}
	binds, err := e.bindMounts(ctx, *rec)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = e.leave(ctx, rec) })
	netns, err := e.join(ctx, rec)
	if err != nil {
		return nil, err
	}
	rootfs, err := e.layers.Client.SnapshotService(rec.Snapshot).Mounts(ctx, rec.ID)
	if err != nil {
		return nil, fmt.Errorf("file system: %w", err)
	}
	spec, err := e.spec(*rec, rootfs, netns, binds)
	if err != nil {
		return nil, err
	}
	shim, err := e.pool.Take(ctx)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { e.pool.Release(ctx, shim) })
	req, err := e.bundle(*rec, spec, rootfs)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(rec.RunDir, shimFile), []byte(shim.Name), 0o600); err != nil {
		return nil, err
	}
	created, err := shim.Tasks.Create(ctx, req)
	if err != nil {
		return nil, launchError(err)
	}
	undo = append(undo, func() {
		// Of a process that has not ended a shim waits ten seconds for the output's end.
		_, _ = shim.Tasks.Kill(ctx, &taskapi.KillRequest{ID: rec.ID, Signal: uint32(unix.SIGKILL), All: true})
		_, _ = shim.Tasks.Delete(ctx, &taskapi.DeleteRequest{ID: rec.ID})
	})
	rec.State.Pid, rec.Shim = int(created.Pid), shim.Name
	if err := unpinSubpaths(rec.RunDir); err != nil { // tried again when it ends
		e.log.Warn("subpath still mounted", "container", rec.ID[:12], "err", err)
	}
	e.connectPending(ctx, c, shim)
	if _, err := shim.Tasks.Start(ctx, &taskapi.StartRequest{ID: rec.ID}); err != nil {
		return nil, launchError(err)
	}
	return newRun(shim), nil
}

// bundle writes what runc reads and returns the shim's request.
func (e *Engine) bundle(rec record, spec *specs.Spec, rootfs []mount.Mount) (*taskapi.CreateTaskRequest, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(rec.RunDir, "config.json"), data, 0o600); err != nil {
		return nil, err
	}
	opts, err := runcOptions(e)
	if err != nil {
		return nil, err
	}
	output := e.stdio(rec)
	if output.Attrs, err = logAttrs(rec); err != nil {
		return nil, err
	}
	req := &taskapi.CreateTaskRequest{
		ID: rec.ID, Bundle: rec.RunDir, Terminal: rec.Config.Tty, Options: opts, Stdout: output.URI(),
	}
	for _, m := range rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if rec.Config.OpenStdin {
		req.Stdin = e.stdinPath(rec)
		if err := unix.Mkfifo(req.Stdin, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
	}
	if err := os.Remove(output.Exit); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return req, nil
}

func runcOptions(e *Engine) (*anypb.Any, error) {
	return typeurl.MarshalAnyToProto(&options.Options{
		BinaryName: e.programs.Runc, Root: filepath.Join(e.cfg.ExecRoot, "runc"), NoNewKeyring: false,
	})
}

func (e *Engine) stdinPath(rec record) string { return filepath.Join(rec.RunDir, "stdin") }

// stdio tells the shim what to do with the container's output.
func (e *Engine) stdio(rec record) stdio.Spec {
	s := stdio.Spec{Socket: filepath.Join(rec.RunDir, "o"), Exit: e.file(rec.ID, "exit.json"), MaxFiles: 1}
	if lc := rec.HostConfig.LogConfig; lc.Type != logNone {
		s.Log = e.logPath(rec.ID)
		s.MaxSize, s.MaxFiles = logLimits(lc)
	}
	return s
}

// launchError puts runc's words into the form that Docker's clients look into
// for the exit codes 126 and 127.
func launchError(err error) error {
	err = errgrpc.ToNative(err)
	return cluster.Invalidf("failed to create shim task: %s: unknown", strings.TrimSpace(err.Error()))
}

// failed records that a container could not be started.
func (e *Engine) failed(ctx context.Context, c *ctr, rec record, cause error) {
	code := 128
	text := cause.Error()
	for _, s := range []string{"executable file not found", "no such file or directory", "system cannot find the file specified"} {
		if strings.Contains(text, s) {
			code = 127
		}
	}
	for _, s := range []string{"permission denied", "not a directory", "is a directory"} {
		if code == 128 && strings.Contains(text, s) {
			code = 126
		}
	}
	now := time.Now().UTC()
	err := e.update(c, func(cur *record) {
		cur.State.ExitCode, cur.State.Error, cur.State.Finished, cur.State.Pid = code, text, now, 0
		if cur.State.WasRunning {
			cur.State.Status = container.StateExited
		} else {
			cur.State.Status = container.StateCreated
		}
		c.exits++
		c.wake()
	})
	if err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	c.failPending(cause)
	e.emit(rec, events.ActionDie, map[string]string{"exitCode": itoa(code), "execDuration": "0"})
}

func (c *ctr) isRemoved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed
}
