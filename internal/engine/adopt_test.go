package engine

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/moby/api/types/container"
)

func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func mustFind(t *testing.T, r *rig, ref string) *ctr {
	t.Helper()
	c, err := r.find(ref)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestAdopt closes the engine while containers run and opens another: nothing
// they wrote is lost, exit codes are known, policies applied.
func TestAdopt(t *testing.T) {
	r := newRig(t)
	talker := r.run([]string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.02; done"}, nil)
	always := r.run([]string{"sh", "-c", "echo hello; sleep 1000"}, func(q *CreateRequest) {
		q.Request.HostConfig.RestartPolicy.Name = container.RestartPolicyAlways
	})
	remover := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) { q.Request.HostConfig.AutoRemove = true })
	paused := r.run([]string{"sleep", "1000"}, nil)
	r.must(r.Pause(t.Context(), paused))
	ended := r.run([]string{"sh", "-c", "sleep 1.5; echo bye; exit 42"}, nil)
	pid := r.inspect(talker).State.Pid
	alwaysPid, removerPid, endedPid := r.inspect(always).State.Pid, r.inspect(remover).State.Pid, r.inspect(ended).State.Pid
	if endedPid == 0 {
		t.Fatal("it ended too soon for this test")
	}
	r.reopen(func() {
		kill9(t, alwaysPid)
		kill9(t, removerPid)
		eventually(t, "its end", func() bool { return syscall.Kill(endedPid, 0) != nil })
	})
	if st := r.inspect(talker).State; !st.Running || st.Pid != pid {
		t.Errorf("talker: %+v, pid was %d", st, pid)
	}
	if code := r.end(ended); code != 42 {
		t.Errorf("exit code of one that ended meanwhile: %d", code)
	}
	if got := r.logs(ended); got != "bye\n" {
		t.Errorf("its log: %q", got)
	}
	eventually(t, "the policy", func() bool { st := r.inspect(always).State; return st.Running && st.Pid != 0 && st.Pid != alwaysPid })
	eventually(t, "removal", func() bool { _, err := r.find(remover); return err != nil })
	if st := r.inspect(paused).State; st.Status != container.StatePaused {
		t.Errorf("paused: %+v", st)
	}
	if out, code := r.exec(talker, "echo", "exec works"); code != 0 || out != "exec works\n" {
		t.Errorf("exec after adoption: %q %d", out, code)
	}
	n := strings.Count(r.logs(talker), "\n")
	eventually(t, "more output", func() bool { return strings.Count(r.logs(talker), "\n") > n })
	lines := strings.Fields(strings.ReplaceAll(r.logs(talker), "tick ", ""))
	for i, l := range lines {
		if l != itoa(i+1) {
			t.Fatalf("line %d is %q: output was lost", i+1, l)
		}
	}
	r.must(r.Stop(t.Context(), talker, StopOptions{Timeout: new(int)}))
}

// TestShimDies: what a shim kept is gone with it; its containers count as killed
// and nothing of them stays behind.
func TestShimDies(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sleep", "1000"}, nil)
	c := mustFind(t, r, id)
	resp, err := c.run.shim.Tasks.Connect(r.context(t.Context()), connectRequest(id))
	r.must(err)
	kill9(t, int(resp.ShimPid))
	if code := r.end(id); code != 137 {
		t.Errorf("exit code %d", code)
	}
	if pid := r.inspect(id).State.Pid; pid != 0 {
		t.Errorf("pid %d", pid)
	}
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", resp.TaskPid)); err == nil && !strings.Contains(string(st), ") Z ") {
		t.Errorf("its process still runs: %s", st)
	}
	r.must(r.Start(t.Context(), id)) // in another shim
	r.must(r.Kill(t.Context(), id, ""))
}

// TestReboot: after a reboot the exec root is empty; containers count as ended
// and those with a policy start.
func TestReboot(t *testing.T) {
	r := newRig(t)
	plain := r.run([]string{"sleep", "1000"}, nil)
	always := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) {
		q.Request.HostConfig.RestartPolicy.Name = container.RestartPolicyAlways
	})
	stopped := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) {
		q.Request.HostConfig.RestartPolicy.Name = container.RestartPolicyUnlessStopped
	})
	r.must(r.Kill(t.Context(), stopped, ""))
	resp, err := mustFind(t, r, plain).run.shim.Tasks.Connect(r.context(t.Context()), connectRequest(plain))
	r.must(err)
	pids := []int{int(resp.ShimPid), r.inspect(plain).State.Pid, r.inspect(always).State.Pid}
	r.reopen(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	eventually(t, "policies", func() bool { return r.inspect(always).State.Running && !r.inspect(plain).State.Running })
	if r.inspect(stopped).State.Running {
		t.Error("a stopped container came back")
	}
}

func connectRequest(id string) *taskapi.ConnectRequest { return &taskapi.ConnectRequest{ID: id} }

// TestHalfStarted: the daemon died between the making of a process and the
// record of it. The next one ends it, and it can be started again.
func TestHalfStarted(t *testing.T) {
	r := newRig(t)
	id := r.create([]string{"sleep", "1000"}, nil)
	c := mustFind(t, r, id)
	rec := c.view()
	run, err := r.launch(r.whole(t.Context()), c, &rec)
	r.must(err)
	pid := rec.State.Pid
	if run.shim == nil || pid == 0 {
		t.Fatal("no process")
	}
	r.reopen(nil)
	eventually(t, "its end", func() bool { return r.inspect(id).State.Status == container.StateExited })
	if code := r.inspect(id).State.ExitCode; code != 137 {
		t.Errorf("exit code %d", code)
	}
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(st), ") Z ") {
		t.Errorf("its process still runs: %s", st)
	}
	r.must(r.Start(t.Context(), id))
	r.must(r.Kill(t.Context(), id, ""))
}

// TestBurst starts many at once, and removes them at once.
func TestBurst(t *testing.T) {
	r := newRig(t)
	const n = 20
	var ids []string
	for range n {
		ids = append(ids, r.create([]string{"sleep", "1000"}, nil))
	}
	each := func(f func(id string) error) {
		errs := make(chan error, 1)
		for _, id := range ids {
			go func() { errs <- f(id) }()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	each(func(id string) error { return r.Start(t.Context(), id) })
	list, err := r.List(t.Context(), ListOptions{})
	if err != nil || len(list) != n {
		t.Errorf("%d run, want %d: %v", len(list), n, err)
	}
	each(func(id string) error { return r.Remove(t.Context(), id, RemoveOptions{Force: true}) })
}

// TestSweep: a snapshot of a container whose making was cut off is removed; one
// of another daemon is not touched.
func TestSweep(t *testing.T) {
	r := newRig(t)
	parent := mustFind(t, r, r.create(nil, nil)).view().ChainID
	sn := r.store.Client.SnapshotService(r.store.Snapshotter)
	ctx := r.context(t.Context())
	ours, theirs := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for key, owner := range map[string]string{ours: r.cfg.DataRoot, theirs: "/elsewhere"} {
		_, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{ownerLabel: owner, "containerd.io/gc.root": "x"}))
		r.must(err)
	}
	r.must(os.MkdirAll(r.runDir(ours)+"/rootfs", 0o755))
	r.reopen(nil)
	if _, err := sn.Stat(ctx, ours); err == nil {
		t.Error("our leftover is still there")
	}
	if _, err := sn.Stat(ctx, theirs); err != nil {
		t.Errorf("another's snapshot: %v", err)
	}
	if _, err := os.Stat(r.runDir(ours)); err == nil {
		t.Error("the leftover's bundle is still there")
	}
}
