package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
)

// TestLimits reads the limits back from the cgroup and the process.
func TestLimits(t *testing.T) {
	r := newRig(t)
	pids := int64(33)
	id := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) {
		q.Request.HostConfig.Resources = container.Resources{
			Memory: 64 << 20, NanoCPUs: 500_000_000, CPUShares: 300, PidsLimit: &pids,
			Ulimits: []*units.Ulimit{{Name: "nofile", Soft: 1000, Hard: 1 << 40}, {Name: "core", Soft: 0, Hard: 0}},
		}
		q.Request.HostConfig.ShmSize = 1 << 20
		q.Request.HostConfig.OomScoreAdj = -500 // beyond what this daemon may
		q.Request.HostConfig.Sysctls = map[string]string{"kernel.msgmax": "9000"}
	})
	rec := mustFind(t, r, id).view()
	want := map[[2]string]string{
		{"memory", "memory.limit_in_bytes"}: "67108864", {"cpu", "cpu.cfs_quota_us"}: "50000",
		{"cpu", "cpu.shares"}: "300", {"pids", "pids.max"}: "33",
	}
	if r.host.unified {
		want = map[[2]string]string{{"", "memory.max"}: "67108864", {"", "cpu.max"}: "50000 100000", {"", "pids.max"}: "33"}
	}
	for k, v := range want {
		if got := strings.TrimSpace(string(r.cgroupFile(rec, k[0], k[1]))); got != v {
			t.Errorf("%s: %q, want %q", k[1], got, v)
		}
	}
	out, _ := r.exec(id, "sh", "-c", "ulimit -n; ulimit -Hc; cat /proc/sys/kernel/msgmax; mount | grep /dev/shm; ls /proc/1/ns >/dev/null; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname")
	if !strings.HasPrefix(out, "1000\n0\n9000\n") || !strings.Contains(out, "size=1024k") || !strings.HasSuffix(out, "\n0\n"+id[:12]+"\n") {
		t.Errorf("inside: %q", out)
	}
	stats, err := r.Stats(t.Context(), id)
	r.must(err)
	if stats.MemoryStats.Limit != 64<<20 || stats.PidsStats.Current == 0 || stats.CPUStats.CPUUsage.TotalUsage == 0 || stats.CPUStats.SystemUsage == 0 {
		t.Errorf("stats %+v", stats)
	}
	top, err := r.Top(t.Context(), id, "")
	r.must(err)
	if len(top.Processes) != 1 || !slices.Contains(top.Titles, "PID") || !strings.Contains(strings.Join(top.Processes[0], " "), "sleep 1000") {
		t.Errorf("top: %+v", top)
	}
	r.must(r.Kill(t.Context(), id, ""))
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup/memory", r.cgroup(rec))); err == nil {
		t.Error("its cgroup is left")
	}
}

func TestOutOfMemory(t *testing.T) {
	r := newRig(t)
	seen := r.listen(t, map[string]map[string]bool{"event": {"oom": true}})
	id := r.run([]string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"}, func(q *CreateRequest) {
		q.Request.HostConfig.Memory, q.Request.HostConfig.MemorySwap = 8<<20, 8<<20
	})
	r.end(id)
	if st := r.inspect(id).State; !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("state %+v", st)
	}
	if m := seen("oom"); m.Actor.ID != id {
		t.Errorf("event %+v", m)
	}
}

func TestIdentity(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		user string
		add  []string
		want string
	}{
		{"", nil, "uid=0(root) gid=0(root) groups=0(root),10(wheel)"},
		{"bee", nil, "uid=1000(bee) gid=1000(bee) groups=1000(bee),10(wheel)"},
		{"bee:hive", nil, "uid=1000(bee) gid=2000(hive) groups=2000(hive)"},
		{"4711:4712", []string{"hive"}, "uid=4711 gid=4712 groups=4712,2000(hive)"},
	} {
		id := r.run([]string{"sh", "-c", "id; echo $HOME"}, func(q *CreateRequest) {
			q.Request.Config.User, q.Request.HostConfig.GroupAdd = tt.user, tt.add
		})
		r.end(id)
		got := strings.SplitN(r.logs(id), "\n", 2)[0]
		if fields(got) != fields(tt.want) {
			t.Errorf("user %q: %s, want %s", tt.user, got, tt.want)
		}
	}
	if _, err := r.tryCreate(nil, nil); err != nil {
		t.Fatal(err)
	}
	id := r.create(nil, func(q *CreateRequest) { q.Request.Config.User = "nobody" })
	if err := r.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), "unable to find user nobody") {
		t.Errorf("unknown user: %v", err)
	}
}

// fields sorts the groups of id's output.
func fields(s string) string {
	head, groups, _ := strings.Cut(s, "groups=")
	list := strings.Split(groups, ",")
	slices.Sort(list)
	return head + strings.Join(list, ",")
}

func TestCapabilities(t *testing.T) {
	r := newRig(t)
	caps := func(change func(*container.HostConfig)) string {
		id := r.run([]string{"grep", "CapEff", "/proc/self/status"}, func(q *CreateRequest) { change(q.Request.HostConfig) })
		r.end(id)
		return strings.TrimSpace(strings.TrimPrefix(r.logs(id), "CapEff:"))
	}
	if got := caps(func(*container.HostConfig) {}); got != "00000000a80425fb" {
		t.Errorf("default: %s", got)
	}
	if got := caps(func(h *container.HostConfig) { h.CapDrop = []string{"ALL"} }); got != "0000000000000000" {
		t.Errorf("none: %s", got)
	}
	if got := caps(func(h *container.HostConfig) { h.CapDrop, h.CapAdd = []string{"all"}, []string{"net_admin"} }); got != "0000000000001000" {
		t.Errorf("net_admin: %s", got)
	}
	own, err := os.ReadFile("/proc/self/status")
	r.must(err)
	_, rest, _ := strings.Cut(string(own), "CapPrm:")
	if got := caps(func(h *container.HostConfig) { h.Privileged = true }); got != strings.Fields(rest)[0] {
		t.Errorf("privileged: %s, the daemon has %s", got, strings.Fields(rest)[0])
	}
}

func TestMounts(t *testing.T) {
	r := newRig(t)
	host := t.TempDir()
	r.must(os.WriteFile(filepath.Join(host, "f"), []byte("from host\n"), 0o644))
	id := r.run([]string{"sh", "-c", "cat /data/seed /f /anon/x; ls -d /made ; echo more > /data/more; touch /h/no; touch /root/no; mount | grep ' /t '; cat /etc/hostname"}, func(q *CreateRequest) {
		q.Request.Config.Hostname = "hive"
		q.Request.Config.Volumes = map[string]struct{}{"/anon": {}}
		q.Request.HostConfig.Binds = []string{"vol:/data", host + ":/h:ro", host + "/f:/f", host + "/made/here:/made"}
		q.Request.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}}}
		q.Request.HostConfig.ReadonlyRootfs = true
	})
	r.end(id)
	out := r.logs(id)
	for _, want := range []string{"seed\n", "from host\n", "/made\n", "touch: /h/no: Read-only file system", "touch: /root/no: Read-only file system", "size=1024k", "hive\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	insp := r.inspect(id)
	if len(insp.Mounts) != 6 {
		t.Fatalf("mounts: %+v", insp.Mounts)
	}
	anon := insp.Mounts[slices.IndexFunc(insp.Mounts, func(m container.MountPoint) bool { return m.Destination == "/anon" })]
	if anon.Name == "" || anon.Source == "" || anon.Type != mount.TypeVolume {
		t.Errorf("anonymous volume: %+v", anon)
	}
	// The volume keeps what was written; what the image has there is not copied again.
	again := r.run([]string{"sh", "-c", "cat /data/more; touch /data/x"}, func(q *CreateRequest) { q.Request.HostConfig.Binds = []string{"vol:/data"} })
	r.end(again)
	if got := r.logs(again); got != "more\n" {
		t.Errorf("second user of the volume: %q", got)
	}
	r.must(r.Remove(t.Context(), id, RemoveOptions{Volumes: true}))
	if _, err := os.Stat(anon.Source); !os.IsNotExist(err) {
		t.Errorf("anonymous volume after rm -v: %v", err)
	}
	_, err := r.tryCreate(nil, func(q *CreateRequest) {
		q.Request.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/no/such", Target: "/x"}}
	})
	if err == nil || err.Error() != `invalid mount config for type "bind": bind source path does not exist: /no/such` {
		t.Errorf("bind of nothing: %v", err)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t)
	seen := r.listen(t, map[string]map[string]bool{"event": {"health_status": true}})
	id := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) {
		q.Request.Config.Healthcheck = &container.HealthConfig{
			Test: []string{"CMD-SHELL", "echo checking; ls /tmp/ok"}, Interval: 30 * time.Millisecond, Retries: 2, Timeout: 5 * time.Second,
		}
	})
	if st := summary(mustFind(t, r, id).view()); !strings.HasSuffix(st.Status, "(health: starting)") && !strings.HasSuffix(st.Status, "(unhealthy)") {
		t.Errorf("status %q", st.Status)
	}
	if m := seen("health_status: unhealthy"); m.Actor.ID != id {
		t.Errorf("event %+v", m)
	}
	r.exec(id, "touch", "/tmp/ok")
	seen("health_status: healthy")
	h := r.inspect(id).State.Health
	if h.Status != container.Healthy || len(h.Log) == 0 || h.Log[len(h.Log)-1].Output != "checking\n/tmp/ok\n" {
		t.Errorf("health %+v", h)
	}
	if list, err := r.List(t.Context(), ListOptions{Filters: map[string]map[string]bool{"health": {"healthy": true}}}); err != nil || len(list) != 1 || !strings.HasSuffix(list[0].Status, "(healthy)") {
		t.Errorf("ps: %+v %v", list, err)
	}
	r.reopen(nil)
	if h := r.inspect(id).State.Health; h.Status != container.Healthy {
		t.Errorf("after a restart of the daemon: %+v", h)
	}
	n := len(r.inspect(id).State.Health.Log)
	last := r.inspect(id).State.Health.Log[n-1].End
	eventually(t, "checks that go on", func() bool { l := r.inspect(id).State.Health.Log; return l[len(l)-1].End.After(last) })
	// A check that hangs is cut off.
	slow := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) {
		q.Request.Config.Healthcheck = &container.HealthConfig{
			Test: []string{"CMD", "sleep", "100"}, Interval: 10 * time.Millisecond, Retries: 1, Timeout: 50 * time.Millisecond,
		}
	})
	eventually(t, "a time-out", func() bool {
		h := r.inspect(slow).State.Health
		return h.Status == container.Unhealthy && strings.HasPrefix(h.Log[0].Output, "Health check exceeded timeout (50ms)")
	})
}

// listen collects events from now on; the result waits for the next one of that action.
func (r *rig) listen(t *testing.T, filters map[string]map[string]bool) func(action string) events.Message {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan events.Message, 1)
	done := make(chan struct{})
	from := time.Now()
	go func() {
		defer close(done)
		_ = r.Events(ctx, from, time.Time{}, filters, func(m events.Message) error {
			select {
			case got <- m:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func(action string) events.Message {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case m := <-got:
				if string(m.Action) == action {
					return m
				}
			case <-deadline:
				t.Fatalf("no event %q", action)
			}
		}
	}
}

func TestEvents(t *testing.T) {
	r := newRig(t)
	start := time.Now()
	id := r.run([]string{"sh", "-c", "exit 3"}, func(q *CreateRequest) {
		q.Name, q.Request.Config.Labels = "ev", map[string]string{"team": "red"}
	})
	r.end(id)
	r.must(r.Remove(t.Context(), id, RemoveOptions{}))
	var got []string
	collect := func(m events.Message) error {
		got = append(got, string(m.Action))
		if m.Actor.ID != id || m.Type != events.ContainerEventType || m.Actor.Attributes["name"] != "ev" ||
			m.Actor.Attributes["image"] != "busybox:1" || m.Actor.Attributes["team"] != "red" || m.Scope != "local" {
			t.Errorf("event %+v", m)
		}
		if m.Action == events.ActionDie && m.Actor.Attributes["exitCode"] != "3" {
			t.Errorf("die: %+v", m.Actor.Attributes)
		}
		return nil
	}
	r.must(r.Events(t.Context(), start, time.Now(), map[string]map[string]bool{"container": {"ev": true}, "label": {"team=red": true}}, collect))
	if want := []string{"create", "start", "die", "destroy"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	n := len(got)
	r.must(r.Events(t.Context(), start, time.Now(), map[string]map[string]bool{"label": {"team=blue": true}}, collect))
	if len(got) != n {
		t.Error("the label filter let something pass")
	}
}

func TestList(t *testing.T) {
	r := newRig(t)
	a := r.run([]string{"sleep", "1000"}, func(q *CreateRequest) { q.Name, q.Request.Config.Labels = "aaa", map[string]string{"k": "v"} })
	b := r.run([]string{"sh", "-c", "exit 4"}, func(q *CreateRequest) { q.Name, q.Swarm = "bbb", true })
	r.end(b)
	c := r.create(nil, func(q *CreateRequest) { q.Name = "ccc" })
	ids := map[string]string{a: "a", b: "b", c: "c"}
	for _, tt := range []struct {
		opts ListOptions
		want string
	}{
		{ListOptions{}, "a"},
		{ListOptions{All: true}, "cba"},
		{ListOptions{Limit: 2}, "cb"},
		{ListOptions{Filters: map[string]map[string]bool{"status": {"exited": true}}}, "b"},
		{ListOptions{Filters: map[string]map[string]bool{"exited": {"4": true}}}, "b"},
		{ListOptions{All: true, Filters: map[string]map[string]bool{"name": {"^/a": true}}}, "a"},
		{ListOptions{All: true, Filters: map[string]map[string]bool{"label": {"k=v": true}}}, "a"},
		{ListOptions{All: true, Filters: map[string]map[string]bool{"is-task": {"true": true}}}, "b"},
		{ListOptions{Filters: map[string]map[string]bool{"since": {"aaa": true}}}, "cb"},
		{ListOptions{Filters: map[string]map[string]bool{"before": {"ccc": true}}}, "ba"},
		{ListOptions{All: true, Filters: map[string]map[string]bool{"ancestor": {"busybox:1": true}}}, "cba"},
		{ListOptions{All: true, Filters: map[string]map[string]bool{"id": {c[:6]: true}}}, "c"},
	} {
		list, err := r.List(t.Context(), tt.opts)
		got := ""
		for _, s := range list {
			got += ids[s.ID]
		}
		if err != nil || got != tt.want {
			t.Errorf("%+v: %q %v, want %q", tt.opts, got, err, tt.want)
		}
	}
	if _, err := r.List(t.Context(), ListOptions{Filters: map[string]map[string]bool{"nope": {"x": true}}}); err == nil || err.Error() != "invalid filter 'nope'" {
		t.Errorf("unknown filter: %v", err)
	}
	list, err := r.List(t.Context(), ListOptions{All: true})
	r.must(err)
	if !strings.HasPrefix(list[1].Status, "Exited (4) ") || list[0].Status != "Created" || !strings.HasPrefix(list[2].Status, "Up ") || list[2].Command != "sleep 1000" {
		t.Errorf("status: %q %q %q", list[0].Status, list[1].Status, list[2].Status)
	}
	report, err := r.Prune(t.Context(), nil)
	r.must(err)
	if len(report.ContainersDeleted) != 2 {
		t.Errorf("pruned: %v", report.ContainersDeleted)
	}
}

// TestSeccomp: the filter is in force, also when it comes compiled from the
// cache, and in an exec; and it is off where it is to be.
func TestSeccomp(t *testing.T) {
	r := newRig(t)
	script := []string{"sh", "-c", "exec 2>&1; grep Seccomp: /proc/self/status; unshare -U true || echo refused"}
	const filtered = "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\nrefused\n"
	for range 2 {
		id := r.run(script, nil)
		r.end(id)
		if got := r.logs(id); got != filtered {
			t.Errorf("got %q", got)
		}
	}
	if cached, err := os.ReadDir(filepath.Join(r.cfg.ExecRoot, "seccomp")); err != nil || len(cached) == 0 {
		t.Errorf("nothing is cached: %v", err)
	}
	id := r.run([]string{"sleep", "1000"}, nil)
	if got, _ := r.exec(id, script...); got != filtered {
		t.Errorf("exec: %q", got)
	}
	id = r.run([]string{"grep", "Seccomp:", "/proc/self/status"}, func(q *CreateRequest) { q.Request.HostConfig.SecurityOpt = []string{"seccomp=unconfined"} })
	r.end(id)
	if got := r.logs(id); got != "Seccomp:\t0\n" {
		t.Errorf("unconfined: %q", got)
	}
}
