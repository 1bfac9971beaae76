// Package whoami keeps the image skep/whoami on the host. The image is a small
// web server that tells who answers; it is built by scripts/build-whoami.sh and
// embedded, so that a fresh swarm has something to run without a registry. The
// daemon calls Ensure at its start; nothing else of the store is touched.
package whoami

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/image"
)

// Image is the name of the image.
const Image = "skep/whoami:latest"

// Label marks the images that Ensure brought; its value tells versions apart.
const Label = "skep.whoami"

// bin holds whoami.tar.gz and version once scripts/build-whoami.sh has run.
//
//go:embed all:bin
var bin embed.FS

// Ensure loads the image into the store if it is absent or another version's.
// An image that somebody else has given the name is left alone. A build without
// the image is errdefs.ErrNotImplemented.
func Ensure(ctx context.Context, store *image.Store) error {
	return ensure(ctx, store, bin)
}

func ensure(ctx context.Context, store *image.Store, files fs.FS) error {
	version, err := fs.ReadFile(files, "bin/version")
	if errors.Is(err, fs.ErrNotExist) {
		return cluster.NotImplementedf("image %s: this build does not carry it; run scripts/build-whoami.sh and build again", Image)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", Image, err)
	}
	have, err := store.Inspect(ctx, Image)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("image %s: %w", Image, err)
	}
	if err == nil {
		ours, marked := have.Config.Labels[Label]
		if !marked || ours == strings.TrimSpace(string(version)) {
			return nil
		}
	}
	tar, err := fs.ReadFile(files, "bin/whoami.tar.gz")
	if err != nil {
		return fmt.Errorf("image %s: %w", Image, err)
	}
	if err := store.Load(ctx, bytes.NewReader(tar), nil); err != nil {
		return fmt.Errorf("image %s: %w", Image, err)
	}
	return nil
}
