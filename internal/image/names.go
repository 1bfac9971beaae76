package image

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

// Tag gives an image another name.
func (s *Store) Tag(ctx context.Context, ref, target string) error {
	ctx = s.space(ctx)
	named, err := parseTarget(target)
	if err != nil {
		return err
	}
	f, err := s.find(ctx, ref)
	if err != nil {
		return err
	}
	rec := f.records[0]
	if f.record != nil {
		rec = *f.record
	}
	if err := s.setName(ctx, named.String(), rec.Target); err != nil {
		return err
	}
	s.event(events.ActionTag, f.id.String(), reference.FamiliarString(named))
	return nil
}

// parseTarget parses a name that is to be given to an image.
func parseTarget(target string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return nil, cluster.Invalidf("%v", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, cluster.Invalidf("refusing to create a tag with a digest reference")
	}
	return reference.TagNameOnly(named), nil
}

// setName makes name lead to target. An image that loses its last name by that
// stays as a dangling one.
func (s *Store) setName(ctx context.Context, name string, target ocispec.Descriptor) error {
	is := s.client.ImageService()
	target.Annotations = nil
	old, err := is.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = is.Create(ctx, images.Image{Name: name, Target: target})
		if errdefs.IsAlreadyExists(err) {
			return s.setName(ctx, name, target)
		}
	case err == nil && old.Target.Digest != target.Digest:
		if err = s.keep(ctx, old); err == nil {
			_, err = is.Update(ctx, images.Image{Name: name, Target: target}, "target")
		}
	}
	if err != nil {
		return err
	}
	return ignoreNotFound(is.Delete(ctx, danglingPrefix+target.Digest.String()))
}

// keep makes a dangling record for the image of rec if rec is its last name.
func (s *Store) keep(ctx context.Context, rec images.Image) error {
	all, err := s.entries(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		i := slices.IndexFunc(e.records, func(r images.Image) bool { return r.Name == rec.Name })
		if i < 0 || len(e.records) > 1 {
			continue
		}
		return s.dangle(ctx, rec.Target)
	}
	return nil
}

func (s *Store) dangle(ctx context.Context, target ocispec.Descriptor) error {
	target.Annotations = nil
	_, err := s.client.ImageService().Create(ctx, images.Image{Name: danglingPrefix + target.Digest.String(), Target: target})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (s *Store) event(action events.Action, id, name string) {
	s.publish(events.ImageEventType, action, events.Actor{ID: id, Attributes: map[string]string{"name": name}})
}

// Remove removes a name, and the image with its last one. An image in use is a
// conflict in Docker's words; force unties a stopped container's from its names.
func (s *Store) Remove(ctx context.Context, ref string, force, prune bool) ([]image.DeleteResponse, error) {
	ctx = s.space(ctx)
	f, err := s.full(ctx, ref)
	if err != nil {
		return nil, err
	}
	if f.record != nil {
		return s.removeName(ctx, ref, f, force)
	}
	if err := s.conflict(f.entry, force, false); err != nil {
		return nil, err
	}
	if !force && !single(f.refs()) {
		return nil, cluster.Conflictf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short(f.id.String()))
	}
	var lines []image.DeleteResponse
	for _, n := range f.refs() {
		lines = append(lines, s.untag(f.id, n))
	}
	gone, err := s.erase(ctx, f.entry)
	return append(lines, gone...), err
}

func (s *Store) untag(id digest.Digest, n reference.Named) image.DeleteResponse {
	s.event(events.ActionUnTag, id.String(), id.String())
	return image.DeleteResponse{Untagged: reference.FamiliarString(n)}
}

func (s *Store) removeName(ctx context.Context, ref string, f found, force bool) ([]image.DeleteResponse, error) {
	if c, _ := s.inUse(f.id.String()); c != "" && !force && single(f.refs()) {
		return nil, cluster.Conflictf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, short(c), short(f.id.String()))
	}
	gone, rest := f.without(f.record.Name)
	var lines []image.DeleteResponse
	for _, n := range gone {
		lines = append(lines, s.untag(f.id, n))
	}
	if len(rest) == 0 {
		if s.conflict(f.entry, force, true) == nil {
			deleted, err := s.erase(ctx, f.entry)
			return append(lines, deleted...), err
		}
		if err := s.dangle(ctx, f.record.Target); err != nil {
			return nil, err
		}
	}
	for _, n := range gone {
		if err := ignoreNotFound(s.client.ImageService().Delete(ctx, n.String())); err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// without parts the names into those that go with name and those that stay: with
// a repository's last tag go its digests.
func (e *entry) without(name string) (gone, rest []reference.Named) {
	repo, lastTag := "", true
	for _, t := range e.tags {
		if t.String() == name {
			repo = t.Name()
		}
	}
	for _, t := range e.tags {
		if t.Name() == repo && t.String() != name {
			lastTag = false
		}
	}
	for _, n := range e.refs() {
		_, isDigest := n.(reference.Canonical)
		if n.String() == name || (isDigest && repo != "" && lastTag && n.Name() == repo) {
			gone = append(gone, n)
		} else {
			rest = append(rest, n)
		}
	}
	return gone, rest
}

// conflict says why an image cannot be deleted. When quiet the text is not shown.
func (s *Store) conflict(e *entry, force, quiet bool) error {
	c, running := s.inUse(e.id.String())
	switch {
	case c == "":
		return nil
	case running:
		return cluster.Conflictf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short(e.id.String()), short(c))
	case !force || quiet && !force:
		return cluster.Conflictf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short(e.id.String()), short(c))
	}
	return nil
}

// erase deletes all records of an image and returns Docker's lines for it and
// the layers that went with it.
func (s *Store) erase(ctx context.Context, e *entry) ([]image.DeleteResponse, error) {
	all, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	kept := map[digest.Digest]bool{}
	for id, other := range all {
		if id != e.id {
			for _, c := range chains(other.meta) {
				kept[c] = true
			}
		}
	}
	is := s.client.ImageService()
	for i, r := range e.records {
		var opts []images.DeleteOpt
		if i == len(e.records)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := ignoreNotFound(is.Delete(ctx, r.Name, opts...)); err != nil {
			return nil, err
		}
	}
	s.event(events.ActionDelete, e.id.String(), e.id.String())
	lines := []image.DeleteResponse{{Deleted: e.id.String()}}
	layers := chains(e.meta)
	slices.Reverse(layers)
	for _, c := range layers {
		if !kept[c] {
			lines = append(lines, image.DeleteResponse{Deleted: c.String()})
		}
	}
	return lines, nil
}

// Prune removes dangling images (or, with all, unused ones) that were created
// before until, if that is set.
func (s *Store) Prune(ctx context.Context, all bool, until time.Time) (image.PruneReport, error) {
	ctx = s.space(ctx)
	entries, err := s.entries(ctx)
	if err != nil {
		return image.PruneReport{}, err
	}
	report := image.PruneReport{ImagesDeleted: []image.DeleteResponse{}}
	var errs []error
	for _, e := range sorted(entries) {
		if !all && len(e.refs()) > 0 || !until.IsZero() && !e.created().Before(until) {
			continue
		}
		if c, _ := s.inUse(e.id.String()); c != "" {
			continue
		}
		sizes := s.layerSizes(ctx, e.meta)
		for _, n := range e.refs() {
			report.ImagesDeleted = append(report.ImagesDeleted, s.untag(e.id, n))
		}
		lines, err := s.erase(ctx, e)
		errs = append(errs, err)
		report.ImagesDeleted = append(report.ImagesDeleted, lines...)
		for _, l := range lines {
			report.SpaceReclaimed += uint64(sizes[digest.Digest(l.Deleted)])
		}
	}
	s.publish(events.ImageEventType, events.ActionPrune, events.Actor{})
	return report, errors.Join(errs...)
}

// single reports whether an image can be deleted by its id without force: at
// most one tag, and all names in one repository.
func single(refs []reference.Named) bool {
	tags := 0
	for _, r := range refs {
		if r.Name() != refs[0].Name() {
			return false
		}
		if _, ok := r.(reference.Canonical); !ok {
			tags++
		}
	}
	return tags <= 1
}

// short returns the twelve digits people know an id by.
func short(id string) string {
	if d, err := digest.Parse(id); err == nil {
		id = d.Encoded()
	}
	return id[:min(12, len(id))]
}
