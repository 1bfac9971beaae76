package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func TestExec(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) { q.Request.Config.Env = []string{"A=1"} })
	if out, code := r.exec(id, "sh", "-c", "echo $A; echo err >&2; exit 9"); code != 9 || !strings.Contains(out, "1\n") || !strings.Contains(out, "err\n") {
		t.Errorf("exec: %q %d", out, code)
	}
	for cmd, want := range map[string]int{"nosuch": 127, "/bin/noexec": 126} {
		xid, err := r.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{cmd}, AttachStdout: true})
		r.must(err)
		err = r.ExecStart(t.Context(), xid, false, nil, Streams{Stdout: io.Discard}, nil)
		if err == nil || !strings.HasPrefix(err.Error(), "OCI runtime exec failed: exec failed: ") {
			t.Errorf("exec %s: %v", cmd, err)
		}
		if insp, err := r.ExecInspect(t.Context(), xid); err != nil || insp.ExitCode == nil || *insp.ExitCode != want {
			t.Errorf("exec %s: exit code %v, want %d", cmd, insp.ExitCode, want)
		}
	}
	// Input ends with the client's.
	xid, err := r.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true, User: "bee", WorkingDir: "/tmp"})
	r.must(err)
	var out bytes.Buffer
	r.must(r.ExecStart(t.Context(), xid, false, nil, Streams{Stdin: io.NopCloser(strings.NewReader("hello")), Stdout: &out}, nil))
	if out.String() != "hello" {
		t.Errorf("cat: %q", out.String())
	}
	if err := r.ExecStart(t.Context(), xid, false, nil, Streams{}, nil); !errdefs.IsConflict(err) {
		t.Errorf("second start: %v", err)
	}
	// Detached, it is started and left.
	xid, err = r.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"touch", "/tmp/mark"}})
	r.must(err)
	r.must(r.ExecStart(t.Context(), xid, true, nil, Streams{}, nil))
	eventually(t, "the detached exec's end", func() bool {
		insp, err := r.ExecInspect(t.Context(), xid)
		return err == nil && insp.ExitCode != nil && *insp.ExitCode == 0
	})
	if out, code := r.exec(id, "ls", "/tmp/mark"); code != 0 {
		t.Errorf("mark: %q", out)
	}
	r.must(r.Kill(t.Context(), id, ""))
	if _, err := r.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"true"}}); !errdefs.IsConflict(err) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}

// TestAttach attaches before the start, as docker run does, and misses nothing.
func TestAttach(t *testing.T) {
	r := newRig(t)
	id := r.create([]string{"sh", "-c", "echo first; cat; echo last >&2"}, func(q *CreateRequest) {
		q.Request.Config.OpenStdin, q.Request.Config.StdinOnce = true, true
	})
	var out, errs bytes.Buffer
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- r.Attach(t.Context(), id, AttachOptions{
			Stream: true, Ready: func() { close(ready) },
			Streams: Streams{Stdin: io.NopCloser(strings.NewReader("middle\n")), Stdout: &out, Stderr: &errs},
		})
	}()
	<-ready
	r.must(r.Start(t.Context(), id))
	r.must(<-done)
	if code := r.end(id); code != 0 || out.String() != "first\nmiddle\n" || errs.String() != "last\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out.String(), errs.String())
	}
	// A later attach with logs gets what was.
	out.Reset()
	r.must(r.Attach(t.Context(), id, AttachOptions{Logs: true, Streams: Streams{Stdout: &out}}))
	if out.String() != "first\nmiddle\n" {
		t.Errorf("replay %q", out.String())
	}
}

func TestTerminal(t *testing.T) {
	r := newRig(t)
	id := r.create([]string{"sh"}, func(q *CreateRequest) {
		q.Request.Config.Tty, q.Request.Config.OpenStdin = true, true
		q.Request.HostConfig.ConsoleSize = [2]uint{30, 100}
	})
	in, typed := io.Pipe()
	var out lockedBuffer
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		done <- r.Attach(t.Context(), id, AttachOptions{Stream: true, Ready: func() { close(ready) }, Streams: Streams{Stdin: in, Stdout: &out}})
	}()
	<-ready
	r.must(r.Start(t.Context(), id))
	fmt.Fprint(typed, "stty size; echo term=$TERM\n")
	eventually(t, "the terminal's size", func() bool {
		return strings.Contains(out.String(), "30 100") && strings.Contains(out.String(), "term=xterm\r\n")
	})
	r.must(r.Resize(t.Context(), id, 40, 120))
	fmt.Fprint(typed, "stty size\n")
	eventually(t, "the new size", func() bool { return strings.Contains(out.String(), "40 120") })
	fmt.Fprint(typed, "\x10\x11") // ctrl-p ctrl-q
	r.must(<-done)
	if !r.inspect(id).State.Running {
		t.Error("detaching ended the container")
	}
	// Attach again, and end it.
	in, typed = io.Pipe()
	go func() {
		done <- r.Attach(t.Context(), id, AttachOptions{Stream: true, Streams: Streams{Stdin: in, Stdout: &out}})
	}()
	fmt.Fprint(typed, "exit 6\n")
	r.must(<-done)
	if code := r.end(id); code != 6 {
		t.Errorf("exit code %d", code)
	}
	// An exec with a terminal.
	id = r.run([]string{"sleep", "1000"}, nil)
	xid, err := r.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"sh", "-c", "stty size; id -u"}, Tty: true, AttachStdout: true})
	r.must(err)
	var xout bytes.Buffer
	r.must(r.ExecStart(t.Context(), xid, false, &[2]uint{20, 50}, Streams{Stdout: &xout}, nil))
	if xout.String() != "20 50\r\n0\r\n" {
		t.Errorf("exec with a terminal: %q", xout.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestLogRotation(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sh", "-c", "for i in $(seq 1 500); do echo line $i; done; printf end"}, func(q *CreateRequest) {
		q.Request.HostConfig.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "8k", "max-file": "3"}}
	})
	r.end(id)
	files, err := filepath.Glob(r.logPath(id) + "*")
	r.must(err)
	if len(files) != 3 {
		t.Fatalf("files: %v", files)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 8<<10 {
			t.Errorf("%s: %d bytes", f, st.Size())
		}
	}
	got := strings.Split(r.logs(id), "\n")
	if got[len(got)-1] != "end" || got[len(got)-2] != "line 500" || len(got) < 200 {
		t.Errorf("end of the log: %q of %d", got[len(got)-3:], len(got))
	}
	for i := 1; i < len(got)-1; i++ { // no gap over the files
		var a, b int
		fmt.Sscanf(got[i-1], "line %d", &a)
		fmt.Sscanf(got[i], "line %d", &b)
		if b != a+1 {
			t.Fatalf("gap: %q, %q", got[i-1], got[i])
		}
	}
	for _, n := range []int{0, 1, 2, 100, 250, 10_000} {
		var lines []string
		r.must(r.Logs(t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Tail: n}, nil, func(e LogEntry) error {
			lines = append(lines, string(e.Line))
			return nil
		}))
		if want := min(n, len(got)); len(lines) != want {
			t.Errorf("tail %d: %d lines, want %d", n, len(lines), want)
		}
	}
}

func TestLogFollow(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sh", "-c", "echo one; cat >/dev/null; echo two; echo three >&2"}, func(q *CreateRequest) {
		q.Request.Config.OpenStdin, q.Request.Config.StdinOnce = true, true
	})
	eventually(t, "the first line", func() bool { return r.logs(id) == "one\n" })
	var out lockedBuffer
	done := make(chan error, 1)
	tty := true
	go func() {
		done <- r.Logs(t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Follow: true, Tail: -1}, func(b bool) { tty = b }, func(e LogEntry) error {
			_, err := fmt.Fprintf(&out, "%s %s", e.Stream, e.Line)
			return err
		})
	}()
	eventually(t, "the first line followed", func() bool { return out.String() == "stdout one\n" })
	r.must(r.Attach(t.Context(), id, AttachOptions{Stream: true, Streams: Streams{Stdin: io.NopCloser(strings.NewReader(""))}}))
	r.must(<-done)
	if s := out.String(); !strings.Contains(s, "stdout two\n") || !strings.Contains(s, "stderr three\n") || tty {
		t.Errorf("followed: %q", s)
	}
	// Since and until.
	now := time.Now()
	n := 0
	count := func(LogEntry) error { n++; return nil }
	r.must(r.Logs(t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Tail: -1, Since: now}, nil, count))
	r.must(r.Logs(t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Tail: -1, Until: now.Add(-time.Hour)}, nil, count))
	if n != 0 {
		t.Errorf("%d lines outside the time asked for", n)
	}
	none := r.run([]string{"echo", "x"}, func(q *CreateRequest) { q.Request.HostConfig.LogConfig.Type = "none" })
	r.end(none)
	err := r.Logs(t.Context(), none, LogsOptions{Stdout: true}, nil, count)
	if err == nil || err.Error() != "configured logging driver does not support reading" {
		t.Errorf("log driver none: %v", err)
	}
}

// TestBigOutput: a client that reads late loses nothing, and a container that
// writes much is not held up by a log nobody follows.
func TestBigOutput(t *testing.T) {
	r := newRig(t)
	id := r.create([]string{"sh", "-c", "dd if=/dev/zero bs=1024 count=4096 2>/dev/null"}, nil)
	pr, pw := io.Pipe()
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		err := r.Attach(context.WithoutCancel(t.Context()), id, AttachOptions{Stream: true, Ready: func() { close(ready) }, Streams: Streams{Stdout: pw}})
		pw.Close()
		done <- err
	}()
	<-ready
	r.must(r.Start(t.Context(), id))
	n, err := io.Copy(io.Discard, pr)
	r.must(err)
	r.must(<-done)
	if n != 4<<20 {
		t.Errorf("%d bytes, want %d", n, 4<<20)
	}
	r.end(id)
	if got := len(r.logs(id)); got != 4<<20 {
		t.Errorf("%d bytes in the log", got)
	}
}
