package image

import (
	"cmp"
	"context"
	"maps"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
)

func (m *meta) created() time.Time {
	if m.config.Created == nil {
		return time.Unix(0, 0).UTC()
	}
	return *m.config.Created
}

// sorted returns the images newest first.
func sorted(all map[digest.Digest]*entry) []*entry {
	return slices.SortedFunc(maps.Values(all), func(a, b *entry) int {
		return cmp.Or(b.created().Compare(a.created()), cmp.Compare(a.id, b.id))
	})
}

// chains returns the snapshots of an image's layers, lowest first.
func chains(m *meta) []digest.Digest {
	return identity.ChainIDs(slices.Clone(m.config.RootFS.DiffIDs))
}

// layerSizes returns what each layer takes on disk, unpacked, by chain id. A
// layer that is not unpacked counts as it is packed.
func (s *Store) layerSizes(ctx context.Context, m *meta) map[digest.Digest]int64 {
	sizes := map[digest.Digest]int64{}
	for i, c := range chains(m) {
		s.mu.Lock()
		n, ok := s.usage[c]
		s.mu.Unlock()
		if !ok {
			if u, err := s.client.SnapshotService(s.snapshotter).Usage(ctx, c.String()); err == nil {
				n = u.Size
				s.mu.Lock()
				if len(s.usage) >= s.maxCache {
					clear(s.usage)
				}
				s.usage[c] = n
				s.mu.Unlock()
			} else if i < len(m.manifest.Layers) {
				n = m.manifest.Layers[i].Size
			}
		}
		sizes[c] = n
	}
	return sizes
}

func (s *Store) size(ctx context.Context, m *meta) (total int64) {
	for _, n := range s.layerSizes(ctx, m) {
		total += n
	}
	return total
}

// List returns what image ls shows, newest first. An unknown filter is
// errdefs.ErrInvalidArgument.
func (s *Store) List(ctx context.Context, opts ListOptions) ([]image.Summary, error) {
	ctx = s.space(ctx)
	all, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := s.filter(ctx, opts.Filters)
	if err != nil {
		return nil, err
	}
	list := []image.Summary{}
	for _, e := range sorted(all) {
		tags, digests, ok := keep(e)
		if !ok {
			continue
		}
		list = append(list, image.Summary{
			ID: e.id.String(), RepoTags: tags, RepoDigests: digests, Created: e.created().Unix(),
			Labels: e.config.Config.Labels, Size: s.size(ctx, e.meta), SharedSize: -1, Containers: -1,
		})
	}
	return list, nil
}

// filter turns the API's filters into a function that picks an image and the
// names to show of it.
func (s *Store) filter(ctx context.Context, f filters.Filters) (func(*entry) (tags, digests []string, ok bool), error) {
	tests := []func(*entry) bool{func(e *entry) bool { return filters.Pruned(f, e.config.Config.Labels) }}
	var patterns []string
	for key, values := range f {
		for v := range values {
			switch key {
			case "label", "label!":
			case "reference":
				if _, err := path.Match(v, ""); err != nil {
					return nil, cluster.Invalidf("invalid reference filter %q: %v", v, err)
				}
				patterns = append(patterns, v)
			default:
				t, err := s.test(ctx, key, v)
				if err != nil {
					return nil, err
				}
				tests = append(tests, t)
			}
		}
	}
	return func(e *entry) (tags, digests []string, ok bool) {
		for _, t := range tests {
			if !t(e) {
				return nil, nil, false
			}
		}
		tags, digests = []string{}, []string{}
		for _, t := range e.tags {
			if matches(patterns, t) {
				tags = append(tags, reference.FamiliarString(t))
			}
		}
		for _, d := range e.digests {
			if matches(patterns, d) {
				digests = append(digests, reference.FamiliarString(d))
			}
		}
		return tags, digests, len(patterns) == 0 || len(tags)+len(digests) > 0
	}, nil
}

func (s *Store) test(ctx context.Context, key, v string) (func(*entry) bool, error) {
	switch key {
	case "dangling":
		want, err := strconv.ParseBool(v)
		if err != nil {
			return nil, cluster.Invalidf("invalid filter 'dangling=[%s]'", v)
		}
		return func(e *entry) bool { return (len(e.refs()) == 0) == want }, nil
	case "before", "since":
		f, err := s.find(ctx, v)
		if err != nil {
			return nil, err
		}
		if key == "before" {
			return func(e *entry) bool { return e.created().Before(f.created()) }, nil
		}
		return func(e *entry) bool { return e.created().After(f.created()) }, nil
	case "until":
		t, ok := filters.Moment(v, time.Now())
		if !ok {
			return nil, cluster.Invalidf("invalid filter 'until=[%s]'", v)
		}
		return func(e *entry) bool { return e.created().Before(t) }, nil
	}
	return nil, cluster.Invalidf("invalid filter '%s'", key)
}

func matches(patterns []string, n reference.Named) bool {
	if len(patterns) == 0 {
		return true
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := reference.FamiliarMatch(p, n)
		return ok
	})
}

// Inspect returns everything about an image.
func (s *Store) Inspect(ctx context.Context, ref string) (image.InspectResponse, error) {
	ctx = s.space(ctx)
	f, err := s.full(ctx, ref)
	if err != nil {
		return image.InspectResponse{}, err
	}
	r := image.InspectResponse{
		ID: f.id.String(), RepoTags: []string{}, RepoDigests: []string{},
		Created: f.created().Format(time.RFC3339Nano), Author: f.config.Author, Config: &f.config.Config,
		Architecture: f.config.Architecture, Variant: f.config.Variant, Os: f.config.OS, OsVersion: f.config.OSVersion,
		Size: s.size(ctx, f.meta), RootFS: image.RootFS{Type: f.config.RootFS.Type},
		GraphDriver: &storage.DriverData{Name: s.snapshotter, Data: map[string]string{}},
	}
	for _, t := range f.tags {
		r.RepoTags = append(r.RepoTags, reference.FamiliarString(t))
	}
	for _, d := range f.digests {
		r.RepoDigests = append(r.RepoDigests, reference.FamiliarString(d))
	}
	for _, d := range f.config.RootFS.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, d.String())
	}
	if n := len(f.config.History); n > 0 {
		r.Comment = f.config.History[n-1].Comment
	}
	for _, rec := range f.records {
		if rec.UpdatedAt.After(r.Metadata.LastTagTime) {
			r.Metadata.LastTagTime = rec.UpdatedAt
		}
	}
	return r, nil
}

// History returns the steps that made an image, newest first.
func (s *Store) History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error) {
	ctx = s.space(ctx)
	f, err := s.full(ctx, ref)
	if err != nil {
		return nil, err
	}
	sizes, layers := s.layerSizes(ctx, f.meta), chains(f.meta)
	steps := []image.HistoryResponseItem{}
	for _, h := range f.config.History {
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && len(layers) > 0 {
			item.Size, layers = sizes[layers[0]], layers[1:]
		}
		steps = append(steps, item)
	}
	if len(steps) == 0 {
		steps = append(steps, image.HistoryResponseItem{Created: f.created().Unix(), Size: s.size(ctx, f.meta)})
	}
	slices.Reverse(steps)
	steps[0].ID = f.id.String()
	for _, t := range f.tags {
		steps[0].Tags = append(steps[0].Tags, reference.FamiliarString(t))
	}
	return steps, nil
}
