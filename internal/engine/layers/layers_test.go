package layers

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/sys/mountinfo"
)

// TestSnapshotCutOff: a daemon that died while it made a snapshot has left a
// directory of the number that the next one gets. That one is made all the same.
func TestSnapshotCutOff(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: snapshots need root")
	}
	cfg := Config{Root: t.TempDir()}
	ctx := namespaces.WithNamespace(t.Context(), "skep")
	for i := range 3 {
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Client.SnapshotService(s.Snapshotter).Prepare(ctx, "c"+strconv.Itoa(i), ""); err != nil {
			t.Errorf("snapshot %d: %v", i+1, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(cfg.Root, s.Snapshotter, "snapshots", strconv.Itoa(i+2), "fs")
		if err := os.MkdirAll(left, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMountsLeft: a daemon that died while it looked into a layer has left it
// mounted. The next one on the same root unmounts it, and no other's.
func TestMountsLeft(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	roots := []string{t.TempDir(), t.TempDir()}
	var points []string
	for _, root := range roots {
		s, err := Open(t.Context(), Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		if s.Snapshotter != Overlay {
			t.Skip("SKIPPED: overlayfs cannot be used here")
		}
		sn, ctx := s.Client.SnapshotService(s.Snapshotter), namespaces.WithNamespace(t.Context(), "skep")
		for _, key := range []string{"a", "b"} { // a mount of one layer alone is a bind
			if _, err := sn.Prepare(ctx, key, map[string]string{"b": "base"}[key]); err != nil {
				t.Fatal(err)
			}
			if key == "a" {
				if err := sn.Commit(ctx, "base", key); err != nil {
					t.Fatal(err)
				}
			}
		}
		mounts, err := sn.Mounts(ctx, "b")
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, abandon(t, mounts))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), Config{Root: roots[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, want := range []bool{false, true} {
		if is, _ := mountinfo.Mounted(points[i]); is != want {
			t.Errorf("%s is mounted: %t", points[i], is)
		}
	}
	if _, err := os.Stat(points[0]); err == nil {
		t.Error("its directory is still there")
	}
}

// abandon mounts as containerd's libraries do and unmounts at the test's end only.
func abandon(t *testing.T, mounts []mount.Mount) (point string) {
	t.Helper()
	in, out := make(chan string), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- mount.WithTempMount(context.Background(), mounts, func(root string) error {
			in <- root
			<-out
			return nil
		})
	}()
	select {
	case point = <-in:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() { close(out); <-done }) // may find it unmounted
	return point
}
