package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// Load reads a tar of docker save's or OCI's layout (plain, gzip or zstd) and
// says "Loaded image: x" for each name it brings.
func (s *Store) Load(ctx context.Context, tar io.Reader, progress Progress) error {
	ctx = s.space(ctx)
	// An archive's blobs are taken in under their file names, so one at a time.
	select {
	case s.loading <- struct{}{}:
		defer func() { <-s.loading }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(context.WithoutCancel(ctx))
	if err := s.dropPartial(ctx); err != nil {
		return err
	}
	defer func() {
		if err := s.dropPartial(context.WithoutCancel(ctx)); err != nil {
			s.log.Warn("parts of an archive stay until the next is loaded", "err", err)
		}
	}()
	stream, err := compression.DecompressStream(tar)
	if err != nil {
		return cluster.Invalidf("unrecognized image format")
	}
	defer stream.Close()
	index, err := archive.ImportIndex(ctx, archived{s.client.ContentStore()}, stream)
	if err != nil {
		return cluster.Invalidf("%v", err)
	}
	loaded, err := s.manifests(ctx, index)
	if err != nil {
		return err
	}
	for _, d := range loaded {
		if err := s.adopt(ctx, d, progress); err != nil {
			return err
		}
	}
	return nil
}

// dropPartial forgets what a load that was cut off left behind: containerd would
// go on where it ended, whatever the new archive holds under that name.
func (s *Store) dropPartial(ctx context.Context) error {
	cs := s.client.ContentStore()
	partial, err := cs.ListStatuses(ctx, `ref~="^tar-"`)
	if err != nil {
		return err
	}
	for _, p := range partial {
		if err := ignoreNotFound(cs.Abort(ctx, p.Ref)); err != nil {
			return err
		}
	}
	return nil
}

// manifests returns what an archive's index lists.
func (s *Store) manifests(ctx context.Context, index ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	raw, err := content.ReadBlob(ctx, s.documents(), index)
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, cluster.Invalidf("image archive's index: %v", err)
	}
	return idx.Manifests, nil
}

// adopt ties together the content of one loaded image, names and unpacks it.
func (s *Store) adopt(ctx context.Context, d ocispec.Descriptor, progress Progress) error {
	name := d.Annotations[images.AnnotationImageName]
	if name == "" { // an OCI layout's name may be a whole one, or only a tag
		if n, err := reference.ParseNormalizedNamed(d.Annotations[ocispec.AnnotationRefName]); err == nil && !reference.IsNameOnly(n) {
			name = n.String()
		}
	}
	if err := s.tie(ctx, d, true); err != nil {
		return err
	}
	m, err := s.meta(ctx, d)
	if err != nil {
		return cluster.Invalidf("image %s: %v", d.Digest, err)
	}
	if name == "" {
		if err := s.nameless(ctx, d, m); err != nil {
			return err
		}
		say(progress, jsonstream.Message{Stream: fmt.Sprintf("Loaded image ID: %s\n", m.id)})
		return nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return cluster.Invalidf("%v", err)
	}
	named = reference.TagNameOnly(named)
	if err := s.unpack(ctx, images.Image{Name: named.String(), Target: d}, m); err != nil {
		return unpackError(ctx, fmt.Errorf("image %s: %w", reference.FamiliarString(named), err))
	}
	if old, err := s.findName(ctx, named); err == nil && old.id != m.id {
		say(progress, jsonstream.Message{Stream: fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string\n", reference.FamiliarString(named), old.id)})
	}
	if err := s.setName(ctx, named.String(), d); err != nil {
		return err
	}
	s.event(events.ActionLoad, m.id.String(), reference.FamiliarString(named))
	say(progress, jsonstream.Message{Stream: fmt.Sprintf("Loaded image: %s\n", reference.FamiliarString(named))})
	return nil
}

// nameless keeps an image that came without a name, unless it has one here.
func (s *Store) nameless(ctx context.Context, d ocispec.Descriptor, m *meta) error {
	if err := s.unpack(ctx, images.Image{Name: danglingPrefix + d.Digest.String(), Target: d}, m); err != nil {
		return err
	}
	all, err := s.entries(ctx)
	if err != nil || all[m.id] != nil {
		return err
	}
	return s.dangle(ctx, d)
}

// tie labels content with what it refers to, so that it lives as long as the
// record does. Parts for other platforms may be missing when lax.
func (s *Store) tie(ctx context.Context, d ocispec.Descriptor, lax bool) error {
	cs := s.client.ContentStore()
	children := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		kids, err := images.Children(ctx, s.documents(), desc)
		if lax && errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		return kids, err
	})
	return images.Walk(ctx, images.SetChildrenLabels(cs, children), d)
}

// Save writes images as a tar that Load and docker load read.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	ctx = s.space(ctx)
	cs := s.client.ContentStore()
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.Default()), archive.WithSkipMissing(cs)}
	for _, ref := range refs {
		f, err := s.full(ctx, ref)
		if err != nil {
			return err
		}
		switch {
		case f.record == nil:
			opts = append(opts, archive.WithManifest(f.records[0].Target))
		case isTagged(f.name):
			opts = append(opts, archive.WithManifest(f.record.Target, f.name.String()))
		default:
			opts = append(opts, archive.WithManifest(f.record.Target))
		}
		s.event(events.ActionSave, f.id.String(), ref)
	}
	return archive.Export(ctx, cs, w, opts...)
}

func isTagged(n reference.Named) bool {
	_, tagged := n.(reference.NamedTagged)
	_, digested := n.(reference.Digested)
	return tagged && !digested
}

// Import makes an image of one layer out of a file system's tar. changes are
// Dockerfile instructions (CMD, ENV, EXPOSE …). It returns the image's id.
func (s *Store) Import(ctx context.Context, tar io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (id string, err error) {
	ctx = s.space(ctx)
	name := ""
	if ref != "" {
		named, err := parseTarget(ref)
		if err != nil {
			return "", err
		}
		name = named.String()
	}
	now := time.Now().UTC()
	cfg := dockerspec.DockerOCIImage{}
	cfg.Platform = platforms.DefaultSpec()
	if platform != nil {
		cfg.Platform = *platform
	}
	cfg.Created = &now
	if cfg.Config, err = parseChanges(changes); err != nil {
		return "", err
	}
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return "", err
	}
	defer done(context.WithoutCancel(ctx))
	layer, err := s.writeLayer(ctx, tar)
	if err != nil {
		return "", err
	}
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}
	cfg.History = []ocispec.History{{Created: &now, Comment: message}}
	target, err := s.writeImage(ctx, cfg, []ocispec.Descriptor{layer})
	if err != nil {
		return "", err
	}
	m, err := s.meta(ctx, target)
	if err != nil {
		return "", err
	}
	if err := s.unpack(ctx, images.Image{Name: name, Target: target}, m); err != nil {
		return "", unpackError(ctx, err)
	}
	if name == "" {
		err = s.dangle(ctx, target)
	} else {
		err = s.setName(ctx, name, target)
	}
	if err == nil {
		s.event(events.ActionImport, m.id.String(), m.id.String())
	}
	return m.id.String(), err
}

// unpackError tells the fault of an archive that a user sent from the host's.
func unpackError(ctx context.Context, err error) error {
	for _, ours := range []error{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENOMEM, context.Canceled, context.DeadlineExceeded} {
		if ctx.Err() != nil || errors.Is(err, ours) {
			return err
		}
	}
	return cluster.Invalidf("the archive cannot be unpacked: %v", err)
}

// writeLayer stores a tar, uncompressed, as a layer.
func (s *Store) writeLayer(ctx context.Context, tar io.Reader) (ocispec.Descriptor, error) {
	stream, err := compression.DecompressStream(tar)
	if err != nil {
		return ocispec.Descriptor{}, cluster.Invalidf("unrecognized archive format: %v", err)
	}
	defer stream.Close()
	ref := "import-" + cluster.NewID()
	w, err := content.OpenWriter(ctx, s.client.ContentStore(), content.WithRef(ref))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	size, err := io.Copy(w, stream)
	if err != nil {
		s.client.ContentStore().Abort(context.WithoutCancel(ctx), ref)
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: w.Digest(), Size: size}
	if err := w.Commit(ctx, size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	return d, nil
}

// writeImage stores a configuration and the manifest that joins it to its layers.
func (s *Store) writeImage(ctx context.Context, cfg dockerspec.DockerOCIImage, layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	config, err := s.writeJSON(ctx, ocispec.MediaTypeImageConfig, cfg)
	if err != nil {
		return config, err
	}
	target, err := s.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	if err != nil {
		return target, err
	}
	return target, s.tie(ctx, target, false)
}

func (s *Store) writeJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, content.WriteBlob(ctx, s.client.ContentStore(), "json-"+d.Digest.String(), bytes.NewReader(raw), d)
}

func say(p Progress, m jsonstream.Message) {
	if p != nil {
		p(m)
	}
}
