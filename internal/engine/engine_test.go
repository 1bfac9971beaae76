package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/engine/layers"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/volume"
)

// rig is an engine on roots of its own, with a busybox image.
type rig struct {
	*Engine
	t     *testing.T
	cfg   Config
	live  atomic.Pointer[Engine] // for those who ask while it is opened
	store *layers.Store
}

// newRig needs root, and the programs that scripts/build-runtime.sh builds.
func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: containers need root")
	}
	root, err := os.MkdirTemp("", "skep-engine-")
	if err != nil {
		t.Fatal(err)
	}
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level}))
	cfg := Config{
		DataRoot: filepath.Join(root, "data"), ExecRoot: filepath.Join(root, "run"),
		CgroupParent: "/skep-test-" + filepath.Base(root), Log: log, ContainersPerShim: 3,
	}
	store, err := OpenLayers(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	imgs := image.New(image.Config{Client: store.Client, Namespace: store.Namespace, Snapshotter: store.Snapshotter, Log: log})
	if _, err := imgs.Import(t.Context(), busyboxRoot(t), "busybox:1", "", []string{`CMD ["sh"]`}, nil); err != nil {
		t.Fatal(err)
	}
	r := &rig{store: store}
	if tt, ok := t.(*testing.T); ok {
		r.t = tt
	}
	cfg.Layers, cfg.Images = store, imgs
	cfg.Volumes, err = volume.New(volume.Config{Root: filepath.Join(root, "data", "volumes"), Log: log, Holders: func(name string) []string {
		return r.usersOf(name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.cfg = cfg
	if r.Engine, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	r.live.Store(r.Engine)
	t.Cleanup(func() { r.tearDown(t, root) })
	return r
}

// usersOf returns the containers that refer to a volume, as the daemon does.
func (r *rig) usersOf(volume string) (ids []string) {
	e := r.live.Load()
	if e == nil {
		return []string{"unknown"}
	}
	list, err := e.List(context.Background(), ListOptions{All: true})
	if err != nil {
		return []string{"unknown"}
	}
	for _, c := range list {
		if slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return m.Name == volume }) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// tearDown removes everything and checks that nothing is left.
func (r *rig) tearDown(t testing.TB, root string) {
	ctx := context.WithoutCancel(t.Context())
	for _, c := range r.all() {
		if err := r.Remove(ctx, c.id, RemoveOptions{Force: true, Volumes: true}); err != nil {
			t.Errorf("remove %s: %v", c.id[:12], err)
		}
	}
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	for _, dir := range []string{"data/containers", "run/c", "run/shims"} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
	if err := r.store.Close(); err != nil {
		t.Errorf("close layers: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), root) {
		t.Errorf("mounts left below %s: %v", root, err)
	}
	removeCgroups(r.cfg.CgroupParent)
	if err := os.RemoveAll(root); err != nil {
		t.Error(err)
	}
}

// removeCgroups removes the parent that the test's containers had, in each hierarchy.
func removeCgroups(parent string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	for _, d := range append(dirs, "/sys/fs/cgroup"+parent) {
		_ = os.Remove(d)
	}
}

// reopen closes the engine and opens another on the same roots, as a restart of
// the daemon does.
func (r *rig) reopen(meanwhile func()) {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile()
	}
	r.live.Store(nil)
	e, err := New(r.t.Context(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Engine = e
	r.live.Store(e)
}

// create makes a busybox container; change adapts the request.
func (r *rig) create(cmd []string, change func(*CreateRequest)) string {
	r.t.Helper()
	id, err := r.tryCreate(cmd, change)
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) tryCreate(cmd []string, change func(*CreateRequest)) (string, error) {
	req := CreateRequest{}
	req.Request.Config = &container.Config{Image: "busybox:1", Cmd: cmd}
	req.Request.HostConfig = &container.HostConfig{NetworkMode: "none"}
	if change != nil {
		change(&req)
	}
	resp, err := r.Create(r.t.Context(), req)
	return resp.ID, err
}

func (r *rig) run(cmd []string, change func(*CreateRequest)) string {
	r.t.Helper()
	id := r.create(cmd, change)
	r.must(r.Start(r.t.Context(), id))
	return id
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// end waits for a container's end and returns its exit code.
func (r *rig) end(id string) int {
	r.t.Helper()
	ch, err := r.Wait(r.t.Context(), id, container.WaitConditionNotRunning)
	r.must(err)
	select {
	case res := <-ch:
		return res.ExitCode
	case <-time.After(20 * time.Second):
		r.t.Fatalf("container %s does not end: %+v", id[:12], r.inspect(id).State)
		return 0
	}
}

func (r *rig) inspect(id string) container.InspectResponse {
	r.t.Helper()
	resp, err := r.Inspect(r.t.Context(), id, false)
	r.must(err)
	return resp
}

// logs returns a container's log as one string, both streams in order.
func (r *rig) logs(id string) string {
	r.t.Helper()
	var out strings.Builder
	err := r.Logs(r.t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Tail: -1}, nil, func(e LogEntry) error {
		out.Write(e.Line)
		return nil
	})
	r.must(err)
	return out.String()
}

// exec runs a command in a container and returns its output and exit code.
func (r *rig) exec(id string, cmd ...string) (string, int) {
	r.t.Helper()
	xid, err := r.ExecCreate(r.t.Context(), id, container.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	r.must(err)
	var out lockedBuffer
	r.must(r.ExecStart(r.t.Context(), xid, false, nil, Streams{Stdout: &out, Stderr: &out}, nil))
	insp, err := r.ExecInspect(r.t.Context(), xid)
	r.must(err)
	if insp.ExitCode == nil {
		r.t.Fatalf("exec %v has no exit code", cmd)
	}
	return out.String(), *insp.ExitCode
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if cond() {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// busyboxRoot is the tar of a file system with busybox and little else.
func busyboxRoot(t testing.TB) io.Reader {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("SKIPPED: busybox-static is not installed: %v", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/", "proc/", "sys/", "dev/", "data/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range strings.Fields("sh sleep cat echo true false env id ls printf kill hostname stty wc seq touch dd head tail pwd mount trap grep nproc ps ip unshare") {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "bin/noexec", Mode: 0o644}, []byte("#!/bin/sh\n"))
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nbee:x:1000:1000::/home/bee:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nwheel:x:10:root,bee\nbee:x:1000:\nhive:x:2000:\n"))
	add(tar.Header{Name: "data/seed", Mode: 0o644}, []byte("seed\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}
