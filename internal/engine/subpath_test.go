package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/sys/mountinfo"
)

func withSubpath(name, subpath, target string) mount.Mount {
	return mount.Mount{Type: mount.TypeVolume, Source: name, Target: target, VolumeOptions: &mount.VolumeOptions{Subpath: subpath}}
}

func withMounts(list ...mount.Mount) func(*CreateRequest) {
	return func(q *CreateRequest) { q.Request.HostConfig.Mounts = list }
}

func plainVolume(t *testing.T, r *rig, name string) (mountpoint string) {
	t.Helper()
	v, err := r.cfg.Volumes.Create(t.Context(), volume.CreateRequest{Name: name})
	r.must(err)
	return v.Mountpoint
}

// subpathVolume is a volume with a directory a/b that has a file f, and a
// directory of the host that has one of the same name below b.
func subpathVolume(t *testing.T, r *rig) (root, host string) {
	t.Helper()
	root, host = plainVolume(t, r, "vol"), t.TempDir()
	for dir, text := range map[string]string{filepath.Join(root, "a"): "volume", host: "host"} {
		r.must(os.MkdirAll(filepath.Join(dir, "b"), 0o755))
		r.must(os.WriteFile(filepath.Join(dir, "b", "f"), []byte(text+"\n"), 0o644))
	}
	return root, host
}

// swap puts a link in the place of a volume's directory a.
func swap(t *testing.T, root, link string) {
	t.Helper()
	if err := os.Rename(filepath.Join(root, "a"), filepath.Join(root, "was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(link, filepath.Join(root, "a")); err != nil {
		t.Fatal(err)
	}
}

// pinned lists the mounts that are below a rig's bundles, file systems apart.
func (r *rig) pinned() (list []string) {
	r.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(r.cfg.ExecRoot, "c")))
	r.must(err)
	for _, m := range mounts {
		if filepath.Base(m.Mountpoint) != "rootfs" {
			list = append(list, m.Mountpoint)
		}
	}
	return list
}

// TestSubpath: a directory and a file of a volume are mounted alone, links within
// the volume are followed, a restart finds them again, and nothing stays mounted.
func TestSubpath(t *testing.T) {
	r := newRig(t)
	root, _ := subpathVolume(t, r)
	r.must(os.Symlink("a/../a", filepath.Join(root, "link")))
	id := r.run([]string{"sh", "-c", "cat /d/f /f /l/f; echo x >> /d/g; trap 'exit 0' TERM; while :; do sleep 0.1; done"}, withMounts(
		withSubpath("vol", "a/b", "/d"), withSubpath("vol", "a/b/f", "/f"), withSubpath("vol", "link/b", "/l"),
	))
	for starts := 1; starts <= 3; starts++ {
		want := strings.Repeat("volume\n", 3*starts)
		eventually(t, "its output", func() bool { return r.logs(id) == want })
		if left := r.pinned(); len(left) > 0 {
			t.Errorf("mounted while it runs: %q", left)
		}
		if starts < 3 {
			r.must(r.Restart(t.Context(), id, StopOptions{}))
		}
	}
	if got := r.inspect(id).Mounts[0].Source; got != root {
		t.Errorf("inspect has %s, want %s", got, root)
	}
	eventually(t, "what it wrote", func() bool {
		got, err := os.ReadFile(filepath.Join(root, "a/b/g"))
		return err == nil && string(got) == "x\nx\nx\n"
	})
	r.must(r.Remove(t.Context(), id, RemoveOptions{Force: true}))
	if left := r.pinned(); len(left) > 0 {
		t.Errorf("mounted after it was removed: %q", left)
	}
	if _, err := os.Stat(filepath.Join(root, "a/b/f")); err != nil {
		t.Errorf("the volume lost what it had: %v", err)
	}
}

// TestSubpathEscapes: a link that leads out of the volume is refused, and so is
// what is not there or not a path within.
func TestSubpathEscapes(t *testing.T) {
	r := newRig(t)
	root, host := subpathVolume(t, r)
	id := r.create([]string{"cat", "/d/f"}, withMounts(withSubpath("vol", "a/b", "/d")))
	file := r.create([]string{"cat", "/f"}, withMounts(withSubpath("vol", "a/passwd", "/f")))
	missing := r.create(nil, withMounts(withSubpath("vol", "a/b", "/d"), withSubpath("vol", "none", "/e")))
	err := r.Start(t.Context(), missing)
	want := "cannot access path " + root + "/none: lstat " + root + "/none: no such file or directory"
	if !errdefs.IsNotFound(err) || err.Error() != want {
		t.Errorf("missing: %v, want %s", err, want)
	}
	if left := r.pinned(); len(left) > 0 {
		t.Errorf("mounted after a start that failed: %q", left)
	}
	up := strings.Repeat("../", 20)
	swap(t, root, host)
	for _, link := range []string{host, up + host, "/etc", up + "etc", "/proc/self/root/etc"} {
		r.must(os.Remove(filepath.Join(root, "a")))
		r.must(os.Symlink(link, filepath.Join(root, "a")))
		for id, subpath := range map[string]string{id: "a/b", file: "a/passwd"} {
			want := "path concatenation escapes the base directory, base: " + root + ", subpath: " + subpath
			if err := r.Start(t.Context(), id); !errdefs.IsInvalidArgument(err) || err.Error() != want {
				t.Errorf("%s: %v, want %s", link, err, want)
			}
		}
	}
	if got := r.logs(id) + r.logs(file); got != "" {
		t.Errorf("a container that was refused has seen %q", got)
	}
	for want, m := range map[string]mount.Mount{
		`invalid mount config for type "volume": subpath must be a relative path within the volume`: withSubpath("vol", "a/../../x", "/d"),
		`invalid mount config for type "volume": must not set Subpath when using anonymous volumes`: withSubpath("", "a", "/d"),
	} {
		if _, err := r.tryCreate(nil, withMounts(m)); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestSubpathSwapped: what a subpath was when it was looked up is what the
// container gets, whatever is put in its place before runc mounts it.
func TestSubpathSwapped(t *testing.T) {
	r := newRig(t)
	root, host := subpathVolume(t, r)
	id := r.create([]string{"cat", "/d/f"}, withMounts(withSubpath("vol", "a/b", "/d"), mount.Mount{Type: mount.TypeVolume, Source: "later", Target: "/e"}))
	r.Engine.cfg.Volumes = &swapping{Volumes: r.cfg.Volumes, swap: func() {
		if len(r.pinned()) != 1 {
			t.Errorf("mounted by now: %q", r.pinned())
		}
		swap(t, root, host)
	}}
	r.must(r.Start(t.Context(), id))
	r.end(id)
	if got := r.logs(id); got != "volume\n" {
		t.Errorf("it has seen %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(root, "a/b/f")); err != nil || string(got) != "host\n" {
		t.Errorf("the path did not lead to the host: %q, %v", got, err)
	}
}

// swapping are volumes of which one has swap called as it is mounted: after the
// mounts before it in the order of their targets were looked up.
type swapping struct {
	Volumes
	swap func()
}

func (s *swapping) Mount(ctx context.Context, name, holder string) (string, error) {
	if name == "later" {
		s.swap()
	}
	return s.Volumes.Mount(ctx, name, holder)
}

// TestSubpathCutOff: the daemon died with a subpath mounted and no process yet.
// The next one unmounts it, also of a container that it has no record of.
func TestSubpathCutOff(t *testing.T) {
	r := newRig(t)
	root, _ := subpathVolume(t, r)
	id := r.create(nil, withMounts(withSubpath("vol", "a/b", "/d")))
	for _, bundle := range []string{mustFind(t, r, id).view().RunDir, r.runDir(strings.Repeat("ab", 32))} {
		r.must(os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711))
		_, err := pinSubpath(bundle, root, "a/b", 0)
		r.must(err)
	}
	if got := r.pinned(); len(got) != 2 {
		t.Fatalf("mounted: %q", got)
	}
	r.reopen(r.reboundVolumes)
	eventually(t, "its end", func() bool { return r.inspect(id).State.Status == container.StateExited })
	if left := r.pinned(); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
	if _, err := os.Stat(filepath.Join(root, "a/b/f")); err != nil {
		t.Errorf("the volume lost what it had: %v", err)
	}
}
