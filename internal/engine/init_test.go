package engine

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func withInit(yes bool) func(*CreateRequest) {
	return func(req *CreateRequest) { req.Request.HostConfig.Init = &yes }
}

// TestInit: a program that as the first process would not hear SIGTERM hears it
// below an init, which hands its exit code on; inspect shows what was asked for.
func TestInit(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sleep", "1000"}, func(req *CreateRequest) {
		withInit(true)(req)
		req.Request.Config.User = "bee"
		req.Request.HostConfig.ReadonlyRootfs = true
	})
	insp := r.inspect(id)
	if init := insp.HostConfig.Init; init == nil || !*init || insp.Path != "sleep" || !slices.Equal(insp.Args, []string{"1000"}) || len(insp.Mounts) != 0 {
		t.Errorf("inspect: init %v, %s %q, mounts %v", init, insp.Path, insp.Args, insp.Mounts)
	}
	if got, _ := r.exec(id, "cat", "/proc/1/cmdline"); got != "/sbin/docker-init\x00--\x00sleep\x001000\x00" {
		t.Errorf("the first process is %q", got)
	}
	if got, _ := r.exec(id, "grep", " /sbin/docker-init [a-z0-9]* ro", "/proc/mounts"); got == "" {
		t.Error("the init is not mounted read-only")
	}
	long := 15
	r.must(r.Stop(t.Context(), id, StopOptions{Timeout: &long}))
	if code := r.end(id); code != 143 {
		t.Errorf("stopped with %d, want 143: SIGTERM did not reach it", code)
	}
	if code := r.end(r.run([]string{"sh", "-c", "exit 7"}, withInit(true))); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	// As with Docker, it is the init that finds no such program.
	id = r.run([]string{"nothing"}, withInit(true))
	if code := r.end(id); code != 127 || !strings.Contains(r.logs(id), "nothing") {
		t.Errorf("exit code %d, want 127; logs %q", code, r.logs(id))
	}
}

// TestInitReaps: an orphan that ended is gone with an init, and a zombie without.
func TestInitReaps(t *testing.T) {
	r := newRig(t)
	orphan := []string{"sh", "-c", "(sleep 0.05 & echo $! >/tmp/orphan); exec sleep 1000"}
	state := func(id string) string {
		got, _ := r.exec(id, "sh", "-c", `p=$(cat /tmp/orphan) && [ -n "$p" ] || exit; if [ -e /proc/$p ]; then grep State /proc/$p/status; else echo gone; fi`)
		return got
	}
	with, without := r.run(orphan, withInit(true)), r.run(orphan, withInit(false))
	eventually(t, "the orphan is reaped", func() bool { return state(with) == "gone\n" })
	eventually(t, "without an init the orphan stays", func() bool { return strings.Contains(state(without), "zombie") })
}

// TestInitByDefault: the daemon's setting holds for who does not say, and for
// nobody who has another's processes, and so another's first.
func TestInitByDefault(t *testing.T) {
	r := newRig(t)
	r.cfg.Init = true
	r.reopen(nil)
	for what, c := range map[string]struct {
		change func(*CreateRequest)
		want   bool
	}{
		"nothing said": {nil, true},
		"no init":      {withInit(false), false},
		"the host's processes": {func(req *CreateRequest) {
			withInit(true)(req)
			req.Request.HostConfig.PidMode = container.PidMode("host")
		}, false},
	} {
		id := r.run([]string{"cat", "/proc/self/mounts"}, c.change)
		r.end(id)
		if got := strings.Contains(r.logs(id), initPath); got != c.want {
			t.Errorf("%s: an init is there: %v, want %v", what, got, c.want)
		}
	}
	if init := r.inspect(r.create([]string{"true"}, nil)).HostConfig.Init; init != nil {
		t.Errorf("the daemon's default is written into the container: %v", *init)
	}
}
