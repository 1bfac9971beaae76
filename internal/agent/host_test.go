package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agenttest"
	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/engine/layers"
	"github.com/skep-dev/skep/internal/image"
)

// host is a real engine with one image, sleeper: it runs until it is told to
// end, with code 3 on SIGUSR1.
type host struct {
	agent.Host
	t     testing.TB
	root  string
	cfg   engine.Config
	store *layers.Store
}

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: containers need root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("SKIPPED: a container needs Debian's busybox-static")
	}
	root, err := os.MkdirTemp("", "skep-agent-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: root}
	h.cfg = engine.Config{DataRoot: filepath.Join(root, "data"), ExecRoot: filepath.Join(root, "run"), CgroupParent: "/" + filepath.Base(root), Log: slog.New(slog.DiscardHandler)}
	if h.store, err = engine.OpenLayers(t.Context(), h.cfg); err != nil {
		t.Fatal(err)
	}
	h.Images = image.New(image.Config{Client: h.store.Client, Namespace: h.store.Namespace, Snapshotter: h.store.Snapshotter})
	h.cfg.Layers, h.cfg.Images = h.store, h.Images
	h.open()
	t.Cleanup(h.close)
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, hdr := range []*tar.Header{
		{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg},
		{Name: "bin/sh", Linkname: "busybox", Typeflag: tar.TypeSymlink}, {Name: "bin/sleep", Linkname: "busybox", Typeflag: tar.TypeSymlink},
		{Name: "bin/test", Linkname: "busybox", Typeflag: tar.TypeSymlink}, {Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir},
	} {
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if hdr.Size > 0 {
			w.Write(program)
		}
	}
	w.Close()
	_, err = h.Images.Import(t.Context(), &b, "sleeper:1", "", []string{`CMD trap "exit 3" USR1; while :; do sleep 0.05; done`}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) open() {
	h.t.Helper()
	e, err := engine.New(h.t.Context(), h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Engine = e
}

func (h *host) close() {
	ctx := context.Background()
	list, err := h.Engine.List(ctx, engine.ListOptions{All: true})
	if err != nil {
		h.t.Error(err)
	}
	for _, c := range list {
		if err := h.Remove(ctx, c.ID); err != nil {
			h.t.Error(err)
		}
	}
	if err := h.Engine.Close(); err != nil {
		h.t.Error(err)
	}
	if err := h.store.Close(); err != nil {
		h.t.Error(err)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + h.cfg.CgroupParent)
	for _, g := range append(groups, "/sys/fs/cgroup"+h.cfg.CgroupParent) {
		os.Remove(g)
	}
	if err := os.RemoveAll(h.root); err != nil {
		h.t.Error(err)
	}
}

func TestHostConforms(t *testing.T) {
	h := newHost(t)
	agenttest.Conform(t, h, "sleeper:1", func(id string, code int) {
		if err := h.Engine.Kill(context.Background(), id, "USR1"); err != nil {
			t.Error(err)
		}
	})
}

// The agent with real containers: a loss, a health check, and restarts of the
// daemon that no container notices.
func TestAgentOnAHost(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	var a *agent.Agent
	var stop func()
	boot := func() {
		a = agent.New(agent.Config{Dir: filepath.Join(h.root, "agent"), RunDir: filepath.Join(h.root, "agent-run"), Runtime: h, Network: &agenttest.Network{}, NodeID: "n1"})
		run, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(run) }()
		stop = func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	boot()
	defer func() { stop() }()
	await := func(id string, what string, ok func(cluster.Status) bool) cluster.Status {
		t.Helper()
		deadline := time.After(60 * time.Second)
		for {
			st := a.Statuses()[id]
			if ok(st) {
				return st
			}
			select {
			case <-a.Changed():
			case <-deadline:
				t.Fatalf("%s is not %s: %+v", id, what, st)
			}
		}
	}
	running := func(st cluster.Status) bool { return st.State == cluster.StateRunning && st.Serving }
	none := cluster.Item{Kind: cluster.ItemNetwork, ID: "none1", Network: &cluster.WantedNetwork{ID: "none1", Name: "none", Driver: "null"}}
	wantTask := func(id string, desired cluster.State, health string) cluster.Item {
		grace := time.Second
		spec := &swarm.ContainerSpec{Image: "sleeper:1", StopGracePeriod: &grace}
		if health != "" {
			spec.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", health}, Interval: 100 * time.Millisecond, Retries: 1}
		}
		return cluster.Item{Kind: cluster.ItemTask, ID: id, Task: &cluster.WantedTask{
			ID: id, Name: "web.1." + id, ServiceName: "web", Slot: 1, Desired: desired, Spec: &swarm.TaskSpec{ContainerSpec: spec},
			Networks: []cluster.Attachment{{NetworkID: "none1"}},
		}}
	}
	if err := a.Assign(ctx, true, []cluster.Item{none, wantTask("plain", cluster.StateRunning, ""), wantTask("sick", cluster.StateRunning, "test ! -e /tmp/sick")}); err != nil {
		t.Fatal(err)
	}
	before := await("plain", "running", running)
	await("sick", "running and healthy", running)

	stop() // the daemon restarts
	if err := h.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	boot()
	if after := await("plain", "running", running); after.PID != before.PID {
		t.Errorf("the restart was noticed: %+v, before %+v", after, before)
	}

	id, err := h.Engine.ExecCreate(ctx, "web.1.sick", container.ExecCreateRequest{Cmd: []string{"sh", "-c", ": > /tmp/sick"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Engine.ExecStart(ctx, id, true, nil, engine.Streams{}, nil); err != nil {
		t.Fatal(err)
	}
	st := await("sick", "failed", func(st cluster.Status) bool { return st.State == cluster.StateFailed })
	if !strings.HasPrefix(st.Err, "task: ") || !strings.HasSuffix(st.Err, "unhealthy container") {
		t.Errorf("%+v", st)
	}
	if err := h.Engine.Kill(ctx, "web.1.plain", ""); err != nil {
		t.Fatal(err)
	}
	st = await("plain", "failed", func(st cluster.Status) bool { return st.State == cluster.StateFailed })
	if st.Err != "task: non-zero exit (137)" {
		t.Errorf("%+v", st)
	}
	if err := a.Assign(ctx, true, []cluster.Item{none, wantTask("next", cluster.StateRunning, "")}); err != nil {
		t.Fatal(err)
	}
	await("next", "running", running)
	await("plain", "forgotten", func(st cluster.Status) bool { return st.State == 0 })
	if err := a.Assign(ctx, false, []cluster.Item{wantTask("next", cluster.StateShutdown, "")}); err != nil {
		t.Fatal(err)
	}
	await("next", "shut down", func(st cluster.Status) bool { return st.State == cluster.StateShutdown })
	if c, err := h.Inspect(ctx, "web.1.next"); err != nil || c.State != container.StateExited {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := h.Inspect(ctx, "web.1.plain"); err == nil {
		t.Error("a forgotten task's container is still there")
	}
}
