package image

import (
	"cmp"
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/skep-dev/skep/internal/cluster"
)

const danglingPrefix = "dangling@"

// meta is what a target's content says. Content never changes, so neither does a meta.
type meta struct {
	id       digest.Digest // of the configuration
	manifest ocispec.Manifest
	config   dockerspec.DockerOCIImage
	matcher  platforms.MatchComparer // selects the manifest out of an index
}

func (m *meta) chainID() digest.Digest { return identity.ChainID(m.config.RootFS.DiffIDs) }

// entry is an image with all the names that lead to it.
type entry struct {
	*meta
	records []images.Image
	tags    []reference.NamedTagged
	digests []reference.Canonical
}

func (e *entry) refs() []reference.Named {
	var all []reference.Named
	for _, t := range e.tags {
		all = append(all, t)
	}
	for _, d := range e.digests {
		all = append(all, d)
	}
	return all
}

// space puts containerd's namespace into ctx, unless the caller has chosen one.
func (s *Store) space(ctx context.Context) context.Context {
	if _, ok := namespaces.Namespace(ctx); ok && s.ns == "" {
		return ctx
	}
	ns := s.ns
	if ns == "" {
		ns = s.client.DefaultNamespace()
	}
	if ns == "" {
		ns = namespaces.Default
	}
	return namespaces.WithNamespace(ctx, ns)
}

// meta reads what target's content says, for this host's platform if it has it.
func (s *Store) meta(ctx context.Context, target ocispec.Descriptor) (*meta, error) {
	s.mu.Lock()
	m := s.metas[target.Digest]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	cs := s.documents()
	matcher := platforms.Default()
	manifest, err := images.Manifest(ctx, cs, target, matcher)
	if errdefs.IsNotFound(err) && images.IsIndexType(target.MediaType) { // pulled for another platform
		if matcher, err = s.present(ctx, target); err == nil {
			manifest, err = images.Manifest(ctx, cs, target, matcher)
		}
	}
	if err != nil {
		return nil, err
	}
	m = &meta{id: manifest.Config.Digest, manifest: manifest, matcher: matcher}
	raw, err := content.ReadBlob(ctx, cs, manifest.Config)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &m.config); err != nil {
		return nil, cluster.Invalidf("image configuration %s: %v", m.id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) >= s.maxCache {
		clear(s.metas)
	}
	s.metas[target.Digest] = m
	return m, nil
}

// present picks the first platform of an index whose manifest is here.
func (s *Store) present(ctx context.Context, index ocispec.Descriptor) (platforms.MatchComparer, error) {
	all, err := s.manifests(ctx, index)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if _, err := s.client.ContentStore().Info(ctx, d.Digest); err == nil && d.Platform != nil {
			return platforms.OnlyStrict(*d.Platform), nil
		}
	}
	return nil, cluster.NotFoundf("%s", noPlatform)
}

// entries returns all images by id. Records whose content is incomplete are left out.
func (s *Store) entries(ctx context.Context) (map[digest.Digest]*entry, error) {
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b images.Image) int { return cmp.Compare(a.Name, b.Name) })
	all := map[digest.Digest]*entry{}
	for _, r := range records {
		m, err := s.meta(ctx, r.Target)
		if err != nil {
			s.log.Debug("image record left out", "name", r.Name, "err", err)
			continue
		}
		e := all[m.id]
		if e == nil {
			e = &entry{meta: m}
			all[m.id] = e
		}
		e.add(r)
	}
	return all, nil
}

func (e *entry) add(r images.Image) {
	e.records = append(e.records, r)
	if strings.HasPrefix(r.Name, danglingPrefix) {
		return
	}
	named, err := reference.ParseNormalizedNamed(r.Name)
	if err != nil {
		return
	}
	switch n := named.(type) {
	case reference.Canonical:
		e.digests = append(e.digests, n)
	case reference.NamedTagged:
		e.tags = append(e.tags, n)
	}
}

var hexID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{1,64}$`)

// found is the result of a search: the image, and the record that was named
// (nil when it was found by its id).
type found struct {
	*entry
	record *images.Image
	name   reference.Named
}

// find looks for an image by whole id, then by name, then by prefix of its id.
func (s *Store) find(ctx context.Context, ref string) (found, error) {
	if len(strings.TrimPrefix(ref, "sha256:")) == 64 && hexID.MatchString(ref) {
		return s.findID(ctx, ref)
	}
	named, perr := reference.ParseNormalizedNamed(ref)
	if perr == nil {
		f, err := s.findName(ctx, reference.TagNameOnly(named))
		if err == nil || !errdefs.IsNotFound(err) {
			return f, err
		}
	}
	if hexID.MatchString(ref) {
		if f, err := s.findID(ctx, ref); err == nil || !errdefs.IsNotFound(err) {
			return f, err
		}
	}
	if perr != nil && !hexID.MatchString(ref) {
		return found{}, cluster.Invalidf("%v", perr)
	}
	if perr != nil {
		return found{}, cluster.NotFoundf("No such image: %s", ref)
	}
	return found{}, cluster.NotFoundf("No such image: %s", reference.FamiliarString(reference.TagNameOnly(named)))
}

func (s *Store) findName(ctx context.Context, named reference.Named) (found, error) {
	name := named.String()
	d, byDigest := named.(reference.Digested)
	if byDigest { // a tag beside a digest says nothing
		name = named.Name() + "@" + d.Digest().String()
	}
	r, err := s.client.ImageService().Get(ctx, name)
	if err == nil {
		m, err := s.meta(ctx, r.Target)
		if err != nil {
			return found{}, err
		}
		e := &entry{meta: m}
		e.add(r)
		return found{entry: e, record: &r, name: named}, nil
	}
	if !byDigest || !errdefs.IsNotFound(err) {
		return found{}, err
	}
	all, err := s.entries(ctx)
	if err != nil {
		return found{}, err
	}
	for _, e := range all {
		for i, r := range e.records {
			if r.Target.Digest == d.Digest() && strings.HasPrefix(r.Name, named.Name()+":") {
				return found{entry: e, record: &e.records[i], name: named}, nil
			}
		}
	}
	return found{}, errdefs.ErrNotFound
}

func (s *Store) findID(ctx context.Context, ref string) (found, error) {
	all, err := s.entries(ctx)
	if err != nil {
		return found{}, err
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	var hit *entry
	for id, e := range all {
		if strings.HasPrefix(id.Encoded(), prefix) {
			if hit != nil {
				return found{}, cluster.NotFoundf("ambiguous image id prefix: %s", ref)
			}
			hit = e
		}
	}
	if hit == nil {
		return found{}, cluster.NotFoundf("No such image: %s", ref)
	}
	return found{entry: hit}, nil
}

// full completes a search by name with the image's other names.
func (s *Store) full(ctx context.Context, ref string) (found, error) {
	f, err := s.find(ctx, ref)
	if err != nil {
		return f, err
	}
	all, err := s.entries(ctx)
	if err != nil {
		return f, err
	}
	if e := all[f.id]; e != nil {
		f.entry = e
	}
	return f, nil
}

// Resolve finds an image and makes sure that its layers are unpacked. An unknown
// one is errdefs.ErrNotFound in Docker's words ("No such image: x").
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) {
	ctx = s.space(ctx)
	f, err := s.find(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	rec := f.records[0]
	if f.record != nil {
		rec = *f.record
	}
	if err := s.unpacked(ctx, rec, f.meta); err != nil {
		return Image{}, err
	}
	img := Image{ID: f.id.String(), Name: f.id.String(), Ext: f.config.Config.DockerOCIImageConfigExt, ChainID: f.chainID().String()}
	img.Config = f.config.Image
	img.Config.Config = f.config.Config.ImageConfig
	if f.name != nil {
		img.Name = reference.FamiliarString(f.name)
	}
	if f.name != nil {
		if _, err := s.client.ImageService().Get(ctx, f.name.Name()+"@"+rec.Target.Digest.String()); err == nil {
			img.RepoDigest = reference.FamiliarName(f.name) + "@" + rec.Target.Digest.String()
		}
	}
	return img, nil
}

// unpacked returns once the layers are there as a snapshot, unpacking them if not.
func (s *Store) unpacked(ctx context.Context, rec images.Image, m *meta) error {
	chain := m.chainID().String()
	if _, err := s.client.SnapshotService(s.snapshotter).Stat(ctx, chain); err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	return s.unpack(ctx, rec, m)
}

// unpack unpacks the layers and ties them to the configuration, so that they
// live as long as it does. Several callers share one run.
func (s *Store) unpack(ctx context.Context, rec images.Image, m *meta) error {
	run := s.unpacks.DoChan(m.chainID().String()+m.id.String(), func() (any, error) {
		ctx := context.WithoutCancel(ctx) // others may wait for it too
		return nil, containerd.NewImageWithPlatform(s.client, rec, m.matcher).Unpack(ctx, s.snapshotter)
	})
	select {
	case r := <-run:
		return r.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
