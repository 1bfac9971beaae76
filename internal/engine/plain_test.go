package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/image"
)

// These tests need neither root nor containers.

func TestParseBind(t *testing.T) {
	for in, want := range map[string]string{
		"/anon":            "volume ->/anon rw",
		"vol:/data":        "volume vol->/data rw",
		"vol:/data:ro":     "volume vol->/data ro",
		"/src:/dst":        "bind /src->/dst rw",
		"/src:/dst/:ro,z":  "bind /src->/dst ro",
		"/a:/b:rslave,rw":  "bind /a->/b rw",
		"vol:/data:nocopy": "volume vol->/data rw",
		"a:b:c:d":          "invalid volume specification: 'a:b:c:d'",
		"vol:/data:xyz":    "invalid mode: xyz",
		"/src:/":           `invalid volume specification: '/src:/': invalid mount config for type "bind": invalid specification: destination can't be '/'`,
	} {
		m, err := parseBind(in)
		got := string(m.Type) + " " + m.Name + m.Source + "->" + m.Destination + map[bool]string{true: " rw", false: " ro"}[m.RW]
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", in, got, want)
		}
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"a:/b", "/a:/b:ro", "::", "/x", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseBind(s)
		if err == nil && (!strings.HasPrefix(m.Destination, "/") || m.Destination == "/") {
			t.Errorf("%q: destination %q", s, m.Destination)
		}
	})
}

func TestDetachReader(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		detached bool
	}{
		{"plain", "plain", false},
		{"a\x10b", "a\x10b", false},
		{"a\x10\x11more", "a", true},
		{"\x10\x10\x11", "\x10", true},
		{"end\x10", "end\x10", false},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(tt.in), "byte by byte": iotest.OneByteReader(strings.NewReader(tt.in))} {
			got, err := io.ReadAll(&detachReader{r: r, keys: []byte{0x10, 0x11}})
			if string(got) != tt.want || errors.Is(err, errDetached) != tt.detached {
				t.Errorf("%q %s: %q %v", tt.in, name, got, err)
			}
		}
	}
}

func TestMergeImage(t *testing.T) {
	img := ocispec.Image{}
	img.Config = ocispec.ImageConfig{
		Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, Env: []string{"A=image", "B=image"}, User: "bee",
		Labels: map[string]string{"l": "image", "m": "image"}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	for _, tt := range []struct{ entry, cmd, wantEntry, wantCmd []string }{
		{nil, nil, []string{"/entry"}, []string{"cmd"}},
		{nil, []string{"mine"}, []string{"/entry"}, []string{"mine"}},
		{[]string{"/mine"}, nil, []string{"/mine"}, nil},
		{[]string{""}, []string{"x"}, nil, []string{"x"}},
	} {
		cfg := container.Config{Entrypoint: tt.entry, Cmd: tt.cmd, Env: []string{"B=mine"}, Labels: map[string]string{"l": "mine"}}
		mergeImage(&cfg, img)
		if !cmp.Equal(cfg.Entrypoint, tt.wantEntry) || !cmp.Equal(cfg.Cmd, tt.wantCmd) {
			t.Errorf("%v %v: %v %v", tt.entry, tt.cmd, cfg.Entrypoint, cfg.Cmd)
		}
		if d := cmp.Diff([]string{"A=image", "B=mine"}, cfg.Env); d != "" || cfg.User != "bee" || cfg.Labels["l"] != "mine" || cfg.Labels["m"] != "image" || len(cfg.ExposedPorts) != 1 {
			t.Errorf("%+v %s", cfg, d)
		}
	}
	theirs := image.Image{}
	theirs.Ext.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "a"}, Interval: time.Second, Retries: 4}
	cfg := container.Config{Healthcheck: &container.HealthConfig{Interval: time.Minute}}
	mergeDocker(&cfg, theirs)
	if h := cfg.Healthcheck; h.Interval != time.Minute || h.Retries != 4 || len(h.Test) != 2 {
		t.Errorf("health check %+v", h)
	}
}

func TestBackOff(t *testing.T) {
	c := newCtr(record{ID: strings.Repeat("a", 64), HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways}}})
	var got []time.Duration
	for range 12 {
		d, again := c.next(1, time.Second)
		if !again {
			t.Fatal("always is not again")
		}
		got = append(got, d)
	}
	if got[0] != 100*time.Millisecond || got[3] != 800*time.Millisecond || got[11] != time.Minute {
		t.Errorf("delays %v", got)
	}
	if d, _ := c.next(1, 11*time.Second); d != firstDelay {
		t.Errorf("delay after a good run: %v", d)
	}
	c.rec.State.UserStop = true
	if _, again := c.next(0, 0); again {
		t.Error("again after a user's stop")
	}
	c.rec.State.UserStop, c.rec.Swarm = false, true
	if _, again := c.next(0, 0); again {
		t.Error("a task's restart is the agent's business")
	}
	c.rec.Swarm = false
	c.rec.HostConfig.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyOnFailure, MaximumRetryCount: 2}
	if _, again := c.next(0, 0); again {
		t.Error("on-failure after success")
	}
	if c.rec.Restarts = 2; true {
		if _, again := c.next(1, 0); again {
			t.Error("more often than allowed")
		}
	}
}

func TestEventFilters(t *testing.T) {
	m := events.Message{Type: events.ContainerEventType, Action: "health_status: healthy", Scope: "local", Actor: events.Actor{
		ID: "abcdef", Attributes: map[string]string{"name": "web", "image": "nginx:1", "team": "red"},
	}}
	for key, values := range map[string]map[string]bool{
		"event": {"health_status": true, "die:no": false}, "type": {"container": true}, "scope": {"local": true}, "container": {"web": true, "abc": true},
		"image": {"nginx:1": true, "nginx": true}, "label": {"team": true, "team=red": true},
	} {
		for v, want := range values {
			if got := eventMatches(m, map[string]map[string]bool{key: {v: true}}); got != want {
				t.Errorf("%s=%s: %v", key, v, got)
			}
		}
	}
	for key, v := range map[string]string{"event": "die", "type": "image", "scope": "swarm", "container": "db", "image": "redis", "label": "team=blue", "network": "web", "nonsense": "x"} {
		if eventMatches(m, map[string]map[string]bool{key: {v: true}}) {
			t.Errorf("%s=%s matches", key, v)
		}
	}
}

func TestAnEventSaysWhoseItIs(t *testing.T) {
	e := &Engine{events: newBus()}
	e.Publish(events.NetworkEventType, events.ActionCreate, events.Actor{ID: "bridge"})
	e.PublishSwarm(events.NetworkEventType, events.ActionCreate, events.Actor{ID: "overlay"})
	got, _, _ := e.events.after(0)
	if len(got) != 2 || got[0].Scope != "local" || got[1].Scope != "swarm" {
		t.Errorf("%+v", got)
	}
}

func TestEventRing(t *testing.T) {
	b := newBus()
	for i := range kept + 10 {
		b.publish(events.Message{TimeNano: int64(i)})
	}
	got, next, _ := b.after(0)
	if len(got) != kept || got[0].TimeNano != 10 || next != kept+10 {
		t.Errorf("%d events from %d, next %d", len(got), got[0].TimeNano, next)
	}
}

func TestStatus(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for want, st := range map[string]state{
		"Created":                               {Status: container.StateCreated},
		"Up 3 seconds":                          {Status: container.StateRunning, Started: ago(3 * time.Second)},
		"Up 3 minutes (healthy)":                {Status: container.StateRunning, Started: ago(3 * time.Minute), Health: &container.Health{Status: container.Healthy}},
		"Up 3 minutes (health: starting)":       {Status: container.StateRunning, Started: ago(3 * time.Minute), Health: &container.Health{Status: container.Starting}},
		"Up 2 hours (Paused)":                   {Status: container.StatePaused, Started: ago(2 * time.Hour)},
		"Exited (137) 2 minutes ago":            {Status: container.StateExited, ExitCode: 137, Finished: ago(2 * time.Minute)},
		"Restarting (1) Less than a second ago": {Status: container.StateRestarting, ExitCode: 1, Finished: now},
		"Removal In Progress":                   {Status: container.StateRemoving},
	} {
		if got := status(st, now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestPorts(t *testing.T) {
	p80, p53 := apinetwork.MustParsePort("80/tcp"), apinetwork.MustParsePort("53/udp")
	rec := record{Config: &container.Config{ExposedPorts: apinetwork.PortSet{p80: {}, p53: {}}}, HostConfig: &container.HostConfig{PortBindings: apinetwork.PortMap{p80: {{HostPort: "8080"}}}}}
	for v, want := range map[string][2]bool{"80": {true, true}, "80/tcp": {true, true}, "53/udp": {false, true}, "50-60/udp": {false, true}, "81": {}, "x": {}} {
		values := map[string]bool{v: true}
		if got := [2]bool{hasPort(values, rec, true), hasPort(values, rec, false)}; got != want {
			t.Errorf("%s: %v, want %v", v, got, want)
		}
	}
	rec.State.Status = container.StateRunning
	rec.Sandbox.Ports = apinetwork.PortMap{p80: {{HostPort: "8080"}}}
	got := ports(rec)
	if len(got) != 2 || got[0].PrivatePort != 53 || got[0].PublicPort != 0 || got[1].PublicPort != 8080 {
		t.Errorf("%+v", got)
	}
}

func TestConfig(t *testing.T) {
	bad := Config{DataRoot: "rel", ExecRoot: "/" + strings.Repeat("x", 90), LogDriver: "syslog"}
	err := bad.Validate()
	for _, want := range []string{"data root \"rel\"", "leaves no room for sockets", "no image store", "syslog"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// TestOddFiles: what an image has in place of its users' files is read only if it
// is a file; nobody waits for a FIFO.
func TestOddFiles(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "dir/passwd"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "etc/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "real"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "fifo", "out": "../../../../etc/passwd", "none": "nothing", "own": "/etc/../real"} {
		if err := os.Symlink(to, filepath.Join(root, "etc", link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/fifo", "etc/link", "dir/passwd"} {
		if data, err := readIn(root, name); err == nil {
			t.Errorf("%s: read %q", name, data)
		}
	}
	for _, name := range []string{"etc/none", "etc/out", "nowhere/passwd"} {
		if data, err := readIn(root, name); err != nil || data != nil {
			t.Errorf("%s: %q %v", name, data, err)
		}
	}
	if data, err := readIn(root, "etc/own"); err != nil || string(data) != "x" {
		t.Errorf("by a link from the root: %q %v", data, err)
	}
}

// TestNoShim: a container that ended while no daemon was there says for a while
// that it runs. What needs its shim is refused.
func TestNoShim(t *testing.T) {
	e := &Engine{ctrs: map[string]*ctr{}, names: map[string]string{}, execs: map[string]*execution{}, events: newBus(), ctx: t.Context()}
	id := strings.Repeat("a", 64)
	c := newCtr(record{ID: id, Config: &container.Config{}, HostConfig: &container.HostConfig{}, State: state{Status: container.StateRunning}})
	c.run, e.ctrs[id] = newRun(nil), c
	x, err := e.ExecCreate(t.Context(), id, container.ExecCreateRequest{Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"pause": e.Pause(t.Context(), id), "resize": e.Resize(t.Context(), id, 1, 1), "kill": e.signal(t.Context(), c, 9),
		"exec": e.ExecStart(t.Context(), x, false, nil, Streams{}, nil),
	} {
		if !errdefs.IsConflict(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTop(t *testing.T) {
	out := "UID PID PPID CMD\nroot 1 0 init\nroot 42 1 sleep 1000 2000\n"
	got, err := topOf(out, map[string]bool{"42": true})
	if err != nil || !cmp.Equal(got.Processes, [][]string{{"root", "42", "1", "sleep 1000 2000"}}) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := topOf("A B\n", nil); err == nil {
		t.Error("no PID column is no error")
	}
}

// TestUnified reads a made-up cgroup v2 tree: these machines have none.
func TestUnified(t *testing.T) {
	root := t.TempDir()
	e := &Engine{cfg: Config{CgroupParent: "/skep"}, host: host{cgroups: root, unified: true}}
	rec := record{ID: "c1", HostConfig: &container.HostConfig{}}
	dir := filepath.Join(root, "skep", "c1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 70\n",
		"memory.current": "4096\n", "memory.max": "max\n", "memory.stat": "anon 1000\nfile 96\n", "memory.events": "low 0\noom 1\noom_kill 1\n",
		"pids.current": "3\n", "pids.max": "max\n", "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2\n8:16\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got container.StatsResponse
	e.statsV2(rec, &got)
	var want container.StatsResponse
	want.CPUStats.CPUUsage = container.CPUUsage{TotalUsage: 5e6, UsageInUsermode: 3e6, UsageInKernelmode: 2e6}
	want.CPUStats.ThrottlingData = container.ThrottlingData{Periods: 10, ThrottledPeriods: 4, ThrottledTime: 70e3}
	want.MemoryStats = container.MemoryStats{Usage: 4096, Stats: map[string]uint64{"anon": 1000, "file": 96}}
	want.PidsStats = container.PidsStats{Current: 3}
	want.BlkioStats.IoServiceBytesRecursive = []container.BlkioStatEntry{{Major: 8, Op: "read", Value: 100}, {Major: 8, Op: "write", Value: 200}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !e.oomKilled(rec) || !e.host.countsSwap() {
		t.Error("no OOM kill, or swap not counted")
	}
	if e.oomKilled(record{ID: "c2", HostConfig: rec.HostConfig}) {
		t.Error("an OOM kill where there is no cgroup")
	}
}
