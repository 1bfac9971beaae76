package layers

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
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
