package engine

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func TestLifeCycle(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sh", "-c", "echo out; echo err >&2; exit 7"}, func(req *CreateRequest) { req.Name = "web" })
	if code := r.end(id); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	insp := r.inspect("web")
	if insp.State.Status != container.StateExited || insp.State.Running || insp.State.ExitCode != 7 || insp.Name != "/web" || insp.ID != id {
		t.Errorf("inspect: %+v", insp.State)
	}
	if got := r.logs(id); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("logs %q", got)
	}
	// It can be started again, and logs go on.
	r.must(r.Start(t.Context(), id[:8]))
	r.end(id)
	if got := strings.Count(r.logs(id), "out\n"); got != 2 {
		t.Errorf("%d lines after the second run, want 2", got)
	}
	_, err := r.tryCreate(nil, func(req *CreateRequest) { req.Name = "web" })
	want := `Conflict. The container name "/web" is already in use by container "` + id + `". You have to remove (or rename) that container to be able to reuse that name.`
	if err == nil || err.Error() != want || !errdefs.IsConflict(err) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	r.must(r.Remove(t.Context(), "web", RemoveOptions{}))
	if _, err := r.Inspect(t.Context(), id, false); !errdefs.IsNotFound(err) || err.Error() != "No such container: "+id {
		t.Errorf("after removal: %v", err)
	}
}

// TestGone: the end of the process is told by the time the end of the container is.
func TestGone(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sleep", "1000"}, nil)
	gone, err := r.Gone(id)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
		t.Fatal("it runs")
	default:
	}
	r.must(r.Kill(t.Context(), id, ""))
	r.end(id)
	select {
	case <-gone:
	default:
		t.Error("its end is dealt with, but its process is not gone")
	}
	fresh := r.create([]string{"true"}, nil)
	if gone, err = r.Gone(fresh); err != nil {
		t.Fatal(err)
	}
	<-gone // it never ran
	if _, err := r.Gone("nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("of an unknown container: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		cmd  string
		code int
		want string
	}{
		{"nosuch", 127, `exec: "nosuch": executable file not found in $PATH`},
		{"/bin/none", 127, "no such file or directory"},
		{"/bin/noexec", 126, "permission denied"},
	} {
		id := r.create([]string{tt.cmd}, nil)
		err := r.Start(t.Context(), id)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "OCI runtime create failed") {
			t.Errorf("%s: %v", tt.cmd, err)
		}
		if st := r.inspect(id).State; st.ExitCode != tt.code || st.Status != container.StateCreated || st.Error == "" {
			t.Errorf("%s: state %+v, want exit code %d", tt.cmd, st, tt.code)
		}
	}
}

func TestStopSignals(t *testing.T) {
	r := newRig(t)
	zero, one := 0, 1
	heeds := []string{"sh", "-c", "trap 'exit 3' TERM; trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done"}
	id := r.run(heeds, nil)
	eventually(t, "output", func() bool { return r.logs(id) != "" })
	r.must(r.Stop(t.Context(), id, StopOptions{}))
	if code := r.inspect(id).State.ExitCode; code != 3 {
		t.Errorf("exit code after TERM: %d", code)
	}
	r.must(r.Stop(t.Context(), id, StopOptions{})) // again: nothing
	id = r.run(heeds, func(req *CreateRequest) { req.Request.Config.StopSignal = "SIGUSR1" })
	eventually(t, "output", func() bool { return r.logs(id) != "" })
	r.must(r.Restart(t.Context(), id, StopOptions{Timeout: &one}))
	r.must(r.Stop(t.Context(), id, StopOptions{Timeout: &zero}))
	if code := r.inspect(id).State.ExitCode; code != 137 && code != 4 {
		t.Errorf("exit code after no grace: %d", code)
	}
	deaf := r.run([]string{"sleep", "1000"}, nil) // PID 1 without a handler
	if err := r.Remove(t.Context(), deaf, RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("removal of a running container: %v", err)
	}
	r.must(r.Kill(t.Context(), deaf, ""))
	if code := r.inspect(deaf).State.ExitCode; code != 137 {
		t.Errorf("exit code after KILL: %d", code)
	}
	if err := r.Kill(t.Context(), deaf, "KILL"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("kill of a stopped container: %v", err)
	}
}

func TestPause(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sleep", "1000"}, nil)
	r.must(r.Pause(t.Context(), id))
	if st := r.inspect(id).State; st.Status != container.StatePaused || !st.Running || !st.Paused {
		t.Errorf("paused: %+v", st)
	}
	if err := r.Pause(t.Context(), id); !errdefs.IsConflict(err) {
		t.Errorf("second pause: %v", err)
	}
	r.must(r.Unpause(t.Context(), id))
	r.must(r.Pause(t.Context(), id))
	r.must(r.Remove(t.Context(), id, RemoveOptions{Force: true}))
}

func TestAutoRemoveAndWait(t *testing.T) {
	r := newRig(t)
	id := r.create([]string{"sh", "-c", "exit 5"}, func(req *CreateRequest) { req.Request.HostConfig.AutoRemove = true })
	gone, err := r.Wait(t.Context(), id, container.WaitConditionRemoved)
	r.must(err)
	next, err := r.Wait(t.Context(), id, container.WaitConditionNextExit)
	r.must(err)
	r.must(r.Start(t.Context(), id))
	if res := <-next; res.ExitCode != 5 {
		t.Errorf("next exit: %+v", res)
	}
	if res := <-gone; res.ExitCode != 5 {
		t.Errorf("removed: %+v", res)
	}
	if _, err := r.Inspect(t.Context(), id, false); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
}

func TestRename(t *testing.T) {
	r := newRig(t)
	id := r.create(nil, func(req *CreateRequest) { req.Name = "one" })
	other := r.create(nil, func(req *CreateRequest) { req.Name = "two" })
	if err := r.Rename(t.Context(), "one", "two"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), other) {
		t.Errorf("rename to a taken name: %v", err)
	}
	r.must(r.Rename(t.Context(), "one", "three"))
	if got := r.inspect("three"); got.ID != id {
		t.Errorf("renamed: %s", got.ID)
	}
	if _, err := r.Inspect(t.Context(), "one", false); !errdefs.IsNotFound(err) {
		t.Errorf("old name: %v", err)
	}
	if err := r.Rename(t.Context(), "three", "-bad"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad name: %v", err)
	}
}

func TestRestartPolicy(t *testing.T) {
	r := newRig(t)
	policy := func(name container.RestartPolicyMode, n int) func(*CreateRequest) {
		return func(req *CreateRequest) {
			req.Request.HostConfig.RestartPolicy = container.RestartPolicy{Name: name, MaximumRetryCount: n}
		}
	}
	id := r.run([]string{"sh", "-c", "echo run; exit 1"}, policy(container.RestartPolicyOnFailure, 2))
	eventually(t, "two restarts and the end", func() bool {
		insp := r.inspect(id)
		return insp.RestartCount == 2 && insp.State.Status == container.StateExited
	})
	if got := r.logs(id); got != "run\nrun\nrun\n" {
		t.Errorf("log of three runs: %q", got)
	}
	id = r.run([]string{"sh", "-c", "sleep 1000"}, policy(container.RestartPolicyAlways, 0))
	pid := r.inspect(id).State.Pid
	if _, code := r.exec(id, "kill", "-9", "1"); code == 0 {
		t.Log("PID 1 cannot be killed from inside; that is as it should be")
	}
	kill9(t, pid)
	eventually(t, "a new process", func() bool { st := r.inspect(id).State; return st.Running && st.Pid != 0 && st.Pid != pid })
	r.must(r.Kill(t.Context(), id, ""))
	if st := r.inspect(id).State; st.Status != container.StateExited {
		t.Errorf("a killed container came back: %+v", st)
	}
	id = r.run([]string{"false"}, policy(container.RestartPolicyUnlessStopped, 0))
	eventually(t, "restarting", func() bool { return r.inspect(id).State.Restarting })
	if st := summary(mustFind(t, r, id).view()); st.State == container.StateRestarting && !strings.HasPrefix(st.Status, "Restarting (1) ") {
		t.Errorf("status %q", st.Status)
	}
	r.must(r.Stop(t.Context(), id, StopOptions{}))
	n := r.inspect(id).RestartCount
	r.must(r.Remove(t.Context(), id, RemoveOptions{}))
	if n == 0 {
		t.Error("never restarted")
	}
}

func TestCreateRefusals(t *testing.T) {
	r := newRig(t)
	for want, change := range map[string]func(*CreateRequest){
		"Minimum memory limit allowed is 6MB": func(q *CreateRequest) { q.Request.HostConfig.Memory = 1 << 20 },
		"logger: no log driver named 'syslog' is registered": func(q *CreateRequest) {
			q.Request.HostConfig.LogConfig.Type = "syslog"
		},
		"can't create 'AutoRemove' container with restart policy": func(q *CreateRequest) {
			q.Request.HostConfig.AutoRemove = true
			q.Request.HostConfig.RestartPolicy.Name = "always"
		},
		"the working directory 'rel' is invalid, it needs to be an absolute path":  func(q *CreateRequest) { q.Request.Config.WorkingDir = "rel" },
		"Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed": func(q *CreateRequest) { q.Name = "a b" },
		"Invalid container name (/), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed":   func(q *CreateRequest) { q.Name = "/" },
		"Invalid container name (/-x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed": func(q *CreateRequest) { q.Name = "/-x" },
		"Invalid container name (//x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed": func(q *CreateRequest) { q.Name = "//x" },
		"Invalid container name (x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed":   func(q *CreateRequest) { q.Name = "x" },
		"unknown or invalid runtime name: kata":                                    func(q *CreateRequest) { q.Request.HostConfig.Runtime = "kata" },
		"No such image: nosuch:1":                                                  func(q *CreateRequest) { q.Request.Config.Image = "nosuch:1" },
	} {
		if _, err := r.tryCreate(nil, change); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if list, err := r.List(t.Context(), ListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("left after refusals: %v %v", list, err)
	}
}
