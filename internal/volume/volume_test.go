package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func newStore(t *testing.T, root string, holders func(string) []string) *Store {
	t.Helper()
	s, err := New(Config{Root: root, Holders: holders})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(t *testing.T, s *Store, filters map[string]map[string]bool) (all []string) {
	t.Helper()
	l, err := s.List(t.Context(), filters)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range l.Volumes {
		all = append(all, v.Name)
	}
	return all
}

func TestLifeOfAVolume(t *testing.T) {
	root := t.TempDir()
	var held []string
	s := newStore(t, root, func(string) []string { return held })
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if v.Driver != "local" || v.Scope != "local" || v.Mountpoint != filepath.Join(root, "data", "_data") || v.CreatedAt == "" {
		t.Errorf("%+v", v)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, root, func(string) []string { return held }) // the daemon restarts
	again, err := s.Create(t.Context(), volume.CreateRequest{Name: "data", Labels: map[string]string{"other": ""}})
	if err != nil || cmp.Diff(v, again) != "" {
		t.Errorf("created again: %+v %v", again, err)
	}
	held = []string{"c2", "c1"}
	if _, err := s.Mount(t.Context(), "data", "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "data", true); !errdefs.IsConflict(err) || err.Error() != "remove data: volume is in use - [c1, c2]" {
		t.Errorf("removal in use: %v", err)
	}
	held = nil
	if err := s.Remove(t.Context(), "data", false); !errdefs.IsConflict(err) {
		t.Errorf("removal while mounted: %v", err)
	}
	if err := s.Unmount(t.Context(), "data", "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "data", false); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "data", false); !errdefs.IsNotFound(err) || err.Error() != "get data: no such volume" {
		t.Errorf("removed twice: %v", err)
	}
	if err := s.Remove(t.Context(), "data", true); err != nil {
		t.Errorf("forced removal of an unknown volume: %v", err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestErrorsInDockersWords(t *testing.T) {
	s := newStore(t, t.TempDir(), nil)
	for _, c := range []struct {
		req  volume.CreateRequest
		want string
	}{
		{volume.CreateRequest{Name: "a/b"}, `create a/b: "a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
		{volume.CreateRequest{Name: ".."}, `includes invalid characters`},
		{volume.CreateRequest{Name: "x"}, `create x: volume name is too short, names should be at least two alphanumeric characters`},
		{volume.CreateRequest{Name: "vv", Driver: "nope"}, `create vv: error looking up volume plugin nope: plugin "nope" not found`},
		{volume.CreateRequest{Name: "vv", DriverOpts: map[string]string{"colour": "red"}}, `create vv: invalid option: "colour"`},
		{volume.CreateRequest{Name: "vv", DriverOpts: map[string]string{"type": "tmpfs"}}, `create vv: missing required option: "device"`},
		{volume.CreateRequest{Name: "vv", DriverOpts: map[string]string{"size": "1g"}}, `create vv: quota size requested but no quota support`},
	} {
		_, err := s.Create(t.Context(), c.req)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %s", c.req, err, c.want)
		}
	}
	if _, err := s.Inspect(t.Context(), "../etc"); !errdefs.IsNotFound(err) || err.Error() != "get ../etc: no such volume" {
		t.Errorf("outside: %v", err)
	}
	if got := names(t, s, nil); len(got) != 0 {
		t.Errorf("errors left volumes: %v", got)
	}
}

func TestFiltersAndPrune(t *testing.T) {
	used := map[string][]string{"web-data": {"c"}}
	s := newStore(t, t.TempDir(), func(n string) []string { return used[n] })
	create := func(name string, labels map[string]string) string {
		v, err := s.Create(t.Context(), volume.CreateRequest{Name: name, Labels: labels})
		if err != nil {
			t.Fatal(err)
		}
		return v.Name
	}
	create("web-data", map[string]string{"tier": "front"})
	create("db-data", map[string]string{"tier": "back", "keep": ""})
	anon := create("", nil)
	if len(anon) != 64 {
		t.Errorf("anonymous name %q", anon)
	}
	for _, c := range []struct {
		key, value string
		want       []string
	}{
		{"name", "data", []string{"db-data", "web-data"}}, {"name", "^web", []string{"web-data"}},
		{"label", "tier=back", []string{"db-data"}}, {"label", "tier", []string{"db-data", "web-data"}},
		{"label", Anonymous, []string{anon}}, {"dangling", "false", []string{"web-data"}}, {"driver", "nfs", nil},
	} {
		if diff := cmp.Diff(c.want, names(t, s, map[string]map[string]bool{c.key: {c.value: true}})); diff != "" {
			t.Errorf("%s=%s: %s", c.key, c.value, diff)
		}
	}
	if _, err := s.List(t.Context(), map[string]map[string]bool{"colour": {"x": true}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown filter: %v", err)
	}
	report, err := s.Prune(t.Context(), nil)
	if err != nil || cmp.Diff([]string{anon}, report.VolumesDeleted) != "" {
		t.Errorf("prune: %+v %v", report, err)
	}
	report, err = s.Prune(t.Context(), map[string]map[string]bool{"all": {"true": true}, "label!": {"keep": true}})
	if err != nil || len(report.VolumesDeleted) != 0 {
		t.Errorf("prune all but kept: %+v %v", report, err)
	}
	report, err = s.Prune(t.Context(), map[string]map[string]bool{"all": {"true": true}})
	if err != nil || cmp.Diff([]string{"db-data"}, report.VolumesDeleted) != "" {
		t.Errorf("prune all: %+v %v", report, err)
	}
}

func TestCreateRace(t *testing.T) {
	s := newStore(t, t.TempDir(), nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "same"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := names(t, s, nil); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// TestNobodyWaits: what is kept of a volume that somebody changes is forgotten
// when nobody does any more, also by those who did not wait for their turn.
func TestNobodyWaits(t *testing.T) {
	s := newStore(t, t.TempDir(), nil)
	if err := s.Remove(t.Context(), "never-was", true); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.lock(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	hasty, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(hasty, volume.CreateRequest{Name: "one"}); err == nil {
		t.Error("it was made while another changed it")
	}
	done := make(chan error, 1)
	go func() { done <- s.Remove(t.Context(), "one", true) }()
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(s.busy) != 0 {
		t.Errorf("kept: %v", s.busy)
	}
}

// TestAdopt: what an earlier daemon left mounted stays for those who run, and for
// nobody else.
func TestAdopt(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	root := t.TempDir()
	s := newStore(t, root, nil)
	var paths []string
	for _, name := range []string{"used", "left"} {
		if _, err := s.Create(t.Context(), volume.CreateRequest{Name: name, DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}}); err != nil {
			t.Fatal(err)
		}
		path, err := s.Mount(t.Context(), name, "c1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
		paths = append(paths, path)
	}
	s = newStore(t, root, nil)
	if err := s.Adopt(t.Context(), map[string][]string{"used": {"c1"}, "gone": {"c1"}}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if is, err := mountinfo.Mounted(paths[i]); err != nil || is != want {
			t.Errorf("%s is mounted: %t %v", paths[i], is, err)
		}
	}
	if err := s.Unmount(t.Context(), "used", "c1"); err != nil {
		t.Fatal(err)
	}
	if is, err := mountinfo.Mounted(paths[0]); err != nil || is {
		t.Errorf("it stays mounted: %t %v", is, err)
	}
}

func TestMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	root, source := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "seen"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, v := range []string{"bound", "mem"} {
			unix.Unmount(filepath.Join(root, v, "_data"), unix.MNT_DETACH)
		}
	})
	s := newStore(t, root, nil)
	for name, opts := range map[string]map[string]string{
		"bound":  {"type": "none", "device": source, "o": "bind,ro"},
		"mem":    {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,noexec"},
		"broken": {"type": "none", "device": "/nonexistent-skep", "o": "bind"},
	} {
		if _, err := s.Create(t.Context(), volume.CreateRequest{Name: name, DriverOpts: opts}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mount(t.Context(), "broken", "c"); err == nil || !strings.Contains(err.Error(), "failed to mount local volume: mount /nonexistent-skep:") || !strings.HasSuffix(err.Error(), "no such file or directory") {
		t.Errorf("broken: %v", err)
	}
	path, err := s.Mount(t.Context(), "bound", "c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "seen")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(path, "new"), nil, 0o600); err == nil {
		t.Error("a read-only volume was written to")
	}
	s = newStore(t, root, nil) // the daemon restarts while c1 runs
	for _, holder := range []string{"c1", "c1", "c2"} {
		if _, err := s.Mount(t.Context(), "bound", holder); err != nil {
			t.Fatal(err)
		}
	}
	for holder, want := range map[string]bool{"c1": true} {
		if err := s.Unmount(t.Context(), "bound", holder); err != nil {
			t.Fatal(err)
		}
		if got, err := mountinfo.Mounted(path); err != nil || got != want {
			t.Errorf("mounted after %s left: %v %v", holder, got, err)
		}
	}
	for range 2 {
		if err := s.Unmount(t.Context(), "bound", "c2"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := mountinfo.Mounted(path); err != nil || got {
		t.Errorf("still mounted: %v", err)
	}
	mem, err := s.Mount(t.Context(), "mem", "c1")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mem, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 1<<20 {
		t.Errorf("tmpfs: %+v %v", st, err)
	}
	s = newStore(t, root, nil)
	if err := s.Remove(t.Context(), "mem", false); err != nil { // nobody mounted it since the restart
		t.Error(err)
	}
}
