package whoami

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"testing/fstest"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/engine/layers"
	"github.com/skep-dev/skep/internal/image"
)

func newStore(t *testing.T) *image.Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: unpacking images mounts file systems and needs root")
	}
	l, err := layers.Open(t.Context(), layers.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return image.New(image.Config{Client: l.Client, Snapshotter: l.Snapshotter})
}

func TestEnsure(t *testing.T) {
	if _, err := fs.Stat(bin, "bin/whoami.tar.gz"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("SKIPPED: scripts/build-whoami.sh has not run")
	}
	s := newStore(t)
	for range 2 {
		if err := Ensure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	img, err := s.Resolve(t.Context(), "skep/whoami")
	if err != nil {
		t.Fatal(err)
	}
	if img.Config.Config.Entrypoint[0] != "/whoami" || img.Config.Config.Labels["skep.env.templates"] != "true" {
		t.Errorf("%+v", img.Config.Config)
	}
	// A newer skep brings its own.
	tar, err := fs.ReadFile(bin, "bin/whoami.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	newer := fstest.MapFS{"bin/version": {Data: []byte("other\n")}, "bin/whoami.tar.gz": {Data: []byte("broken")}}
	if err := ensure(t.Context(), s, newer); err == nil {
		t.Error("an older version was kept")
	}
	newer["bin/whoami.tar.gz"].Data = tar
	if err := ensure(t.Context(), s, newer); err != nil {
		t.Error(err)
	}
}

func TestBuildWithoutImage(t *testing.T) {
	if err := ensure(t.Context(), newStore(t), fstest.MapFS{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v", err)
	}
}
