package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine/shims"
)

// execution is one process run in a container besides its first. mu guards what
// follows it.
type execution struct {
	id  string
	c   *ctr
	req container.ExecCreateRequest

	mu      sync.Mutex
	shim    *shims.Shim // set once it was started
	started bool
	running bool
	pid     int
	code    *int
	ended   time.Time
}

// ExecCreate makes an exec in a running container and returns its id.
func (e *Engine) ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	c, err := e.find(ref)
	if err != nil {
		return "", err
	}
	rec := c.view()
	if err := execable(rec); err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", cluster.Invalidf("No exec command specified")
	}
	if _, err := detachKeys(req.DetachKeys); err != nil {
		return "", cluster.Invalidf("Invalid detach keys (%s) provided", req.DetachKeys)
	}
	if req.WorkingDir != "" && !path.IsAbs(req.WorkingDir) {
		return "", cluster.Invalidf("the working directory '%s' is invalid, it needs to be an absolute path", req.WorkingDir)
	}
	x := newExec(c, req)
	e.mu.Lock()
	e.execs[x.id] = x
	e.mu.Unlock()
	e.emit(rec, events.Action(string(events.ActionExecCreate)+": "+strings.Join(req.Cmd, " ")), map[string]string{"execID": x.id})
	return x.id, nil
}

func newExec(c *ctr, req container.ExecCreateRequest) *execution {
	var raw [32]byte
	rand.Read(raw[:])
	return &execution{id: hex.EncodeToString(raw[:]), c: c, req: req}
}

func execable(rec record) error {
	switch rec.State.Status {
	case container.StateRunning:
		return nil
	case container.StatePaused:
		return cluster.Conflictf("container %s is paused, unpause the container before exec", rec.ID)
	case container.StateRestarting:
		return cluster.Conflictf("container %s is restarting, wait until the container is running", rec.ID)
	}
	return errNotRunning(rec.ID)
}

func (e *Engine) exec(id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.execs[id]; x != nil {
		return x, nil
	}
	return nil, cluster.NotFoundf("No such exec instance: %s", id)
}

// forgetExecs drops the execs of a container that has ended.
func (e *Engine) forgetExecs(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.execs, func(_ string, x *execution) bool { return x.c.id == id })
}

// ExecStart runs an exec with the given streams until its process ends; with
// detach it returns once the process runs. size is the terminal's, or nil. ready
// is called before the process is run, but not for an exec that may not be run
// at all: Docker's clients expect runc's refusal on the stream.
func (e *Engine) ExecStart(ctx context.Context, id string, detach bool, size *[2]uint, streams Streams, ready func()) error {
	x, err := e.exec(id)
	if err != nil {
		return err
	}
	rec := x.c.view()
	if err := execable(rec); err != nil {
		return err
	}
	x.mu.Lock()
	if x.started {
		x.mu.Unlock()
		return cluster.Conflictf("exec command %s has already run", id)
	}
	x.started = true
	x.mu.Unlock()
	if detach {
		streams = Streams{}
	}
	keys, _ := detachKeys(x.req.DetachKeys) // was checked
	e.emit(rec, events.Action(string(events.ActionExecStart)+": "+strings.Join(x.req.Cmd, " ")), map[string]string{"execID": id})
	if ready != nil {
		ready()
	}
	p, err := e.launchExec(ctx, x, rec, size, streams)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	e.work.Go(func() {
		defer close(done)
		e.finishExec(x, rec, p)
	})
	if detach {
		return nil
	}
	return e.attendExec(ctx, x, rec, p, streams, keys, done)
}

// execIO is the daemon's ends of an exec's streams; a nil one is not used.
type execIO struct {
	dir            string
	stdin          string
	stdout, stderr *os.File
	copies         sync.WaitGroup
}

// launchExec starts the process and begins to copy its output.
func (e *Engine) launchExec(ctx context.Context, x *execution, rec record, size *[2]uint, s Streams) (*execIO, error) {
	ctx = e.whole(ctx)
	shim, err := x.c.shim()
	if err != nil {
		return nil, err
	}
	proc, err := e.execProcess(ctx, x, rec, size)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(proc)
	if err != nil {
		return nil, err
	}
	req := &taskapi.ExecProcessRequest{
		ID: rec.ID, ExecID: x.id, Terminal: x.req.Tty,
		Spec: &anypb.Any{TypeUrl: processType, Value: spec},
	}
	p, err := openExecIO(rec, x, s, req)
	if err != nil {
		return nil, err
	}
	if _, err := shim.Tasks.Exec(ctx, req); err != nil {
		p.close()
		return nil, execError(err)
	}
	started, err := shim.Tasks.Start(ctx, &taskapi.StartRequest{ID: rec.ID, ExecID: x.id})
	if err != nil {
		_, _ = shim.Tasks.Delete(ctx, &taskapi.DeleteRequest{ID: rec.ID, ExecID: x.id})
		p.close()
		x.setEnd(execCode(err))
		return nil, execError(err)
	}
	x.mu.Lock()
	x.shim, x.pid, x.running = shim, int(started.Pid), true
	x.mu.Unlock()
	// The FIFOs have their writers only now; see runtime/shim.
	p.copy(p.stdout, s.Stdout)
	p.copy(p.stderr, s.Stderr)
	return p, nil
}

func openExecIO(rec record, x *execution, s Streams, req *taskapi.ExecProcessRequest) (_ *execIO, err error) {
	p := &execIO{dir: filepath.Join(rec.RunDir, "x"+x.id[:16])}
	if s.Stdin == nil && s.Stdout == nil && s.Stderr == nil && !x.req.Tty {
		return p, nil
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, err
	}
	if s.Stdin != nil {
		p.stdin = filepath.Join(p.dir, "0")
		req.Stdin = p.stdin
		if err := unix.Mkfifo(p.stdin, 0o600); err != nil {
			return nil, err
		}
	}
	// stdout is led through a FIFO even if nobody reads it: the shim takes an
	// exec without one as one without any streams.
	if p.stdout, req.Stdout, err = p.output("1"); err != nil {
		return nil, err
	}
	if !x.req.Tty {
		if p.stderr, req.Stderr, err = p.output("2"); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *execIO) output(name string) (*os.File, string, error) {
	path := filepath.Join(p.dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, "", err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	return f, path, err
}

// copy copies an output until it ends. A client that has gone does not make the
// process wait.
func (p *execIO) copy(f *os.File, w io.Writer) {
	if f == nil {
		return
	}
	p.copies.Go(func() {
		if w != nil {
			_, _ = io.Copy(w, f)
		}
		_, _ = io.Copy(io.Discard, f)
	})
}

// drain waits for the output to be copied, but not for one that something the
// process left behind holds open.
func (p *execIO) drain() {
	drained := make(chan struct{})
	go func() { p.copies.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(2 * time.Second):
	}
}

func (p *execIO) close() {
	for _, f := range []*os.File{p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
	_ = os.RemoveAll(p.dir)
}

// finishExec waits for the process's end and its output, and records it.
func (e *Engine) finishExec(x *execution, rec record, p *execIO) {
	resp, err := x.shim.Tasks.Wait(e.ctx, &taskapi.WaitRequest{ID: rec.ID, ExecID: x.id})
	if e.ctx.Err() != nil {
		p.close()
		return
	}
	code := 137
	if err == nil {
		code = int(resp.ExitStatus)
	}
	// It returns when the output is copied, or gives up on somebody that holds it.
	_, _ = x.shim.Tasks.Delete(e.ctx, &taskapi.DeleteRequest{ID: rec.ID, ExecID: x.id})
	p.drain()
	p.close()
	x.setEnd(code)
	e.emit(rec, events.ActionExecDie, map[string]string{"execID": x.id, "exitCode": itoa(code)})
	e.trimExecs(x.c.id)
}

func (x *execution) setEnd(code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.running, x.code, x.ended = false, &code, time.Now()
}

// attendExec copies the client's input until the process ends, the client goes
// or types the detach keys.
func (e *Engine) attendExec(ctx context.Context, x *execution, rec record, p *execIO, s Streams, keys []byte, done <-chan struct{}) error {
	in := make(chan error, 1)
	ictx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.Stdin != nil {
		if !x.req.Tty {
			keys = nil
		}
		go func() { in <- e.feedExec(ictx, x, rec, p, s.Stdin, keys) }()
	}
	for {
		select {
		case <-done:
			if s.Stdin != nil {
				_ = s.Stdin.Close() // frees the goroutine that reads it
			}
			return nil
		case err := <-in:
			if errors.Is(err, errDetached) {
				e.emit(rec, events.ActionExecDetach, map[string]string{"execID": x.id})
				return nil
			}
			in = nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (e *Engine) feedExec(ctx context.Context, x *execution, rec record, p *execIO, in io.Reader, keys []byte) error {
	err := pour(ctx, p.stdin, &detachReader{r: in, keys: keys})
	if errors.Is(err, errDetached) {
		return err
	}
	if !x.req.Tty && ctx.Err() == nil {
		_, err = x.shim.Tasks.CloseIO(e.whole(ctx), &taskapi.CloseIORequest{ID: rec.ID, ExecID: x.id, Stdin: true})
	}
	return err
}

// execProcess is the process that runc is told to run: like the container's
// first, with what the request changes.
func (e *Engine) execProcess(ctx context.Context, x *execution, rec record, size *[2]uint) (*specs.Process, error) {
	if x.req.User != "" {
		cfg := *rec.Config
		cfg.User = x.req.User
		rec.Config = &cfg
	}
	sec, err := parseSecurity(rec.HostConfig.SecurityOpt)
	if err != nil {
		return nil, err
	}
	rootfs, err := e.layers.Client.SnapshotService(rec.Snapshot).Mounts(ctx, rec.ID)
	if err != nil {
		return nil, err
	}
	p, err := e.process(rec, rootfs, sec)
	if err != nil {
		return nil, err
	}
	p.Terminal, p.Args, p.ConsoleSize = x.req.Tty, x.req.Cmd, nil
	p.Env = mergeEnv(p.Env, x.req.Env)
	if x.req.Tty && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if x.req.WorkingDir != "" {
		p.Cwd = x.req.WorkingDir
	}
	if size == nil {
		size = x.req.ConsoleSize
	}
	if size != nil && x.req.Tty {
		p.ConsoleSize = &specs.Box{Height: size[0], Width: size[1]}
	}
	if x.req.Privileged {
		hc := *rec.HostConfig
		hc.Privileged = true
		p.Capabilities = e.capabilities(&hc, p.User.UID)
	}
	return p, nil
}

// execError puts runc's words into the form Docker's clients know.
func execError(err error) error {
	text := native(err).Error()
	if i := strings.Index(text, "OCI runtime exec failed"); i > 0 {
		text = text[i:]
	}
	return cluster.Invalidf("%s: unknown", strings.TrimSpace(text))
}

// execCode is the exit code of an exec that could not be started.
func execCode(err error) int {
	text := err.Error()
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		return 127
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"):
		return 126
	}
	return 128
}

// ExecResize sets the size of an exec's terminal.
func (e *Engine) ExecResize(ctx context.Context, id string, height, width uint32) error {
	x, err := e.exec(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	shim, running := x.shim, x.running
	x.mu.Unlock()
	if !running {
		return cluster.Conflictf("cannot resize a stopped exec %s", id)
	}
	_, err = shim.Tasks.ResizePty(e.whole(ctx), &taskapi.ResizePtyRequest{ID: x.c.id, ExecID: id, Height: height, Width: width})
	if err != nil {
		return native(err)
	}
	return nil
}

// ExecInspect returns what is known of an exec.
func (e *Engine) ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error) {
	x, err := e.exec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	keys, _ := detachKeys(x.req.DetachKeys)
	return container.ExecInspectResponse{
		ID: x.id, Running: x.running, ExitCode: x.code, ContainerID: x.c.id, Pid: x.pid,
		OpenStdin: x.req.AttachStdin, OpenStdout: x.req.AttachStdout, OpenStderr: x.req.AttachStderr,
		CanRemove: x.code != nil, DetachKeys: keys,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.req.Tty, Entrypoint: x.req.Cmd[0], Arguments: x.req.Cmd[1:], Privileged: &x.req.Privileged, User: x.req.User,
		},
	}, nil
}

// keptExecs is how many ended execs of a container can still be inspected.
const keptExecs = 32

// trimExecs forgets the oldest ended execs of a container.
func (e *Engine) trimExecs(id string) {
	type past struct {
		id string
		at time.Time
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var done []past
	for _, x := range e.execs {
		x.mu.Lock()
		if x.c.id == id && x.code != nil {
			done = append(done, past{x.id, x.ended})
		}
		x.mu.Unlock()
	}
	slices.SortFunc(done, func(a, b past) int { return a.at.Compare(b.at) })
	for i := 0; i < len(done)-keptExecs; i++ {
		delete(e.execs, done[i].id)
	}
}
