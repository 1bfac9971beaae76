package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"google.golang.org/protobuf/types/known/anypb"
)

// Docker's defaults for what a health check leaves open.
const (
	probeInterval      = 30 * time.Second
	probeTimeout       = 30 * time.Second
	probeStartInterval = 5 * time.Second
	probeRetries       = 3
	probeOutput        = 4096
	probeLog           = 5
)

// healthTest returns the command to run, or nil for none.
func healthTest(rec record) []string {
	h := rec.Config.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := rec.Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1:]...)
	}
	return nil // NONE
}

// newHealth is the health of a container that starts.
func (e *Engine) newHealth(rec record) *container.Health {
	if len(healthTest(rec)) == 0 {
		return nil
	}
	return &container.Health{Status: container.Starting}
}

func orElse(d, other time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return other
}

// checkHealth probes a run of a container until it ends.
func (e *Engine) checkHealth(c *ctr, r *run) {
	rec := c.view()
	test := healthTest(rec)
	if len(test) == 0 {
		return
	}
	h := rec.Config.Healthcheck
	interval := orElse(h.Interval, probeInterval)
	startInterval := orElse(h.StartInterval, probeStartInterval)
	e.work.Go(func() {
		for {
			wait := interval
			rec := c.view()
			starting := rec.State.Health != nil && rec.State.Health.Status == container.Starting
			if starting && time.Since(rec.State.Started) < h.StartPeriod {
				wait = min(startInterval, interval)
			}
			select {
			case <-time.After(wait):
			case <-r.ended:
				return
			case <-e.ctx.Done():
				return
			}
			if c.view().State.Status != container.StateRunning {
				continue // paused
			}
			res := e.probe(c, r, rec, test, orElse(h.Timeout, probeTimeout))
			select {
			case <-r.ended:
				return
			case <-e.ctx.Done():
				return
			default:
			}
			e.probed(c, r, res)
		}
	})
}

// probed takes a result in and tells when the health changes. Only then is it
// written down: a probe a second on a hundred containers would keep a disk busy.
func (e *Engine) probed(c *ctr, r *run, res container.HealthcheckResult) {
	was, is := c.noteProbe(r, res)
	if was == is {
		return
	}
	if err := e.persist(c); err != nil {
		e.log.Error("container record not written", "container", c.id[:12], "err", err)
	}
	e.emit(c.view(), events.Action(string(events.ActionHealthStatus)+": "+string(is)), nil)
}

// noteProbe returns what a container's health was and what it is with a result.
func (c *ctr) noteProbe(r *run, res container.HealthcheckResult) (was, is container.HealthStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &c.rec.State
	if c.run != r || st.Health == nil || !st.running() {
		return "", ""
	}
	h := *st.Health
	was = h.Status
	h.Log = append(slices.Clone(h.Log), &res)
	h.Log = h.Log[max(0, len(h.Log)-probeLog):]
	check := c.rec.Config.Healthcheck
	retries := check.Retries
	if retries == 0 {
		retries = probeRetries
	}
	if res.ExitCode == 0 {
		h.FailingStreak, h.Status = 0, container.Healthy
	} else if h.Status != container.Starting || res.Start.Sub(st.Started) >= check.StartPeriod {
		if h.FailingStreak++; h.FailingStreak >= retries {
			h.Status = container.Unhealthy
		}
	}
	st.Health = &h
	return was, h.Status
}

// probe runs the health check's command once.
func (e *Engine) probe(c *ctr, r *run, rec record, test []string, timeout time.Duration) container.HealthcheckResult {
	res := container.HealthcheckResult{Start: time.Now()}
	ctx, cancel := context.WithTimeout(e.ctx, timeout)
	defer cancel()
	x := newExec(c, container.ExecCreateRequest{Cmd: test, AttachStdout: true, AttachStderr: true})
	out := &limited{left: probeOutput}
	code, err := e.runExec(ctx, x, r, rec, out)
	res.End = time.Now()
	switch {
	case ctx.Err() != nil:
		res.ExitCode, res.Output = -1, "Health check exceeded timeout ("+timeout.String()+")"
		if s := out.String(); s != "" {
			res.Output += ": " + s
		}
	case err != nil:
		res.ExitCode, res.Output = -1, err.Error()
	default:
		res.ExitCode, res.Output = code, out.String()
	}
	return res
}

// runExec runs a command in a container, with its output to out, and kills it
// when ctx ends. It is no exec of a user's: nothing tells of it.
func (e *Engine) runExec(ctx context.Context, x *execution, r *run, rec record, out *limited) (int, error) {
	proc, err := e.execProcess(e.ctx, x, rec, nil)
	if err != nil {
		return 0, err
	}
	spec, err := json.Marshal(proc)
	if err != nil {
		return 0, err
	}
	req := &taskapi.ExecProcessRequest{ID: rec.ID, ExecID: x.id, Spec: &anypb.Any{TypeUrl: processType, Value: spec}}
	p, err := openExecIO(rec, x, Streams{Stdout: out, Stderr: out}, req)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if _, err := r.shim.Tasks.Exec(e.ctx, req); err != nil {
		return 0, native(err)
	}
	del := func() {
		_, _ = r.shim.Tasks.Delete(e.ctx, &taskapi.DeleteRequest{ID: rec.ID, ExecID: x.id})
	}
	if _, err := r.shim.Tasks.Start(e.ctx, &taskapi.StartRequest{ID: rec.ID, ExecID: x.id}); err != nil {
		del()
		return execCode(err), nil
	}
	p.copy(p.stdout, out)
	p.copy(p.stderr, out)
	resp, err := r.shim.Tasks.Wait(ctx, &taskapi.WaitRequest{ID: rec.ID, ExecID: x.id})
	if ctx.Err() != nil && e.ctx.Err() == nil {
		_, _ = r.shim.Tasks.Kill(e.ctx, &taskapi.KillRequest{ID: rec.ID, ExecID: x.id, Signal: uint32(syscall.SIGKILL)})
		last, stop := context.WithTimeout(e.ctx, 5*time.Second)
		defer stop()
		_, _ = r.shim.Tasks.Wait(last, &taskapi.WaitRequest{ID: rec.ID, ExecID: x.id})
	}
	del()
	if err != nil {
		return 0, err
	}
	p.drain()
	return int(resp.ExitStatus), nil
}

// processType is the URL under which containerd knows an OCI process.
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// limited keeps the beginning of what is written to it.
type limited struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), l.left)
	l.buf.Write(p[:n])
	l.left -= n
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// oomKilled reports whether the kernel killed something of a container for want
// of memory. The cgroup has to exist still.
func (e *Engine) oomKilled(rec record) bool {
	file := "memory.oom_control"
	if e.host.unified {
		file = "memory.events"
	}
	return cgroupValue(e.cgroupFile(rec, "memory", file), "oom_kill") > 0
}
