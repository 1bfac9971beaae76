package image

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

// Pull fetches an image from its registry. A nil platform is this host's. What
// the registry refuses comes back in Docker's words.
func (s *Store) Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress Progress) error {
	ctx = s.space(ctx)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return cluster.Invalidf("%v", err)
	}
	named = reference.TagNameOnly(named)
	matcher := platforms.Default()
	if platform != nil {
		matcher = platforms.Only(*platform)
	}
	r := s.resolver(auth)
	_, desc, err := r.Resolve(ctx, named.String())
	if err != nil {
		return registryError(err, named)
	}
	say(progress, jsonstream.Message{ID: tagOrDigest(named), Status: "Pulling from " + reference.Path(named)})

	release, err := s.alone(ctx, desc.Digest, progress)
	if err != nil {
		return err
	}
	defer release()
	byDigest := named.Name() + "@" + desc.Digest.String()
	fresh, err := s.fetch(ctx, r, byDigest, desc, matcher, progress)
	if err != nil {
		return platformError(registryError(err, named), platform)
	}
	if isTagged(named) {
		old, err := s.client.ImageService().Get(ctx, named.String())
		fresh = fresh || err != nil || old.Target.Digest != desc.Digest
		if err := s.setName(ctx, named.String(), desc); err != nil {
			return err
		}
	}
	if err := ignoreNotFound(s.client.ImageService().Delete(ctx, danglingPrefix+desc.Digest.String())); err != nil {
		return err
	}
	say(progress, jsonstream.Message{Status: "Digest: " + desc.Digest.String()})
	if fresh {
		say(progress, jsonstream.Message{Status: "Status: Downloaded newer image for " + reference.FamiliarString(named)})
	} else {
		say(progress, jsonstream.Message{Status: "Status: Image is up to date for " + reference.FamiliarString(named)})
	}
	s.event(events.ActionPull, reference.FamiliarString(named), reference.FamiliarName(named))
	return nil
}

// alone waits until nobody else pulls the target: what one has fetched the next
// finds. While it waits it says so, since who watches may give up on silence.
func (s *Store) alone(ctx context.Context, target digest.Digest, progress Progress) (release func(), err error) {
	said := time.NewTicker(10 * time.Second)
	defer said.Stop()
	for {
		s.mu.Lock()
		other := s.fetching[target]
		if other == nil {
			mine := make(chan struct{})
			s.fetching[target] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.fetching, target)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-said.C:
			say(progress, jsonstream.Message{ID: short(target.String()), Status: "Waiting"})
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func tagOrDigest(named reference.Named) string {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String()
	}
	if t, ok := named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// platformError names the platform that an image does not come for.
func platformError(err error, p *ocispec.Platform) error {
	if err == nil || err.Error() != noPlatform {
		return err
	}
	want := platforms.DefaultSpec()
	if p != nil {
		want = *p
	}
	return cluster.NotFoundf("no matching manifest for %s in the manifest list entries", platforms.Format(want))
}

// fetch brings the content of name@digest here, unpacked and under that name,
// and reports whether anything was missing.
func (s *Store) fetch(ctx context.Context, r remotes.Resolver, name string, desc ocispec.Descriptor, matcher platforms.MatchComparer, progress Progress) (fresh bool, err error) {
	if rec, err := s.client.ImageService().Get(ctx, name); err == nil {
		ok, _, _, missing, err := images.Check(ctx, s.client.ContentStore(), desc, matcher)
		if err == nil && ok && len(missing) == 0 {
			m, err := s.meta(ctx, desc)
			if err != nil {
				return false, err
			}
			return false, s.unpacked(ctx, rec, m)
		}
	}
	s.mu.Lock()
	delete(s.metas, desc.Digest) // what was there for another platform decides no more
	s.mu.Unlock()
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return false, err
	}
	defer done(context.WithoutCancel(ctx))
	t := &transfer{store: s, say: progress, first: map[digest.Digest]string{}, shown: map[digest.Digest]string{}}
	stop := t.watch(ctx)
	_, err = s.client.Pull(ctx, name, containerd.WithResolver(r), containerd.WithPlatformMatcher(matcher),
		containerd.WithPullUnpack, containerd.WithPullSnapshotter(s.snapshotter),
		containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackFetchAllContent()}),
		containerd.WithMaxConcurrentDownloads(3), containerd.WithImageHandlerWrapper(t.wrap))
	stop()
	if err == nil {
		t.complete()
	}
	return true, err
}

// transfer shows how the layers of one pull come along. Only watch says anything
// while it goes on: a Progress is called by one at a time.
type transfer struct {
	store *Store
	say   Progress

	mu     sync.Mutex // guards layers, first and shown
	layers []ocispec.Descriptor
	first  map[digest.Digest]string // what is to be said first of a layer
	shown  map[digest.Digest]string // what was said last of it
}

// wrap learns the layers from the manifest as it passes.
func (t *transfer) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if isDocument(desc) {
			if err := fetchable(desc); err != nil {
				return nil, err
			}
		}
		children, err := h.Handle(ctx, desc)
		if err == nil {
			children, err = checked(desc, children)
		}
		if err != nil || !images.IsManifestType(desc.MediaType) {
			return children, err
		}
		for _, c := range children {
			if images.IsLayerType(c.MediaType) {
				t.add(ctx, c)
			}
		}
		return children, nil
	})
}

func (t *transfer) add(ctx context.Context, layer ocispec.Descriptor) {
	status := "Pulling fs layer"
	if _, err := t.store.client.ContentStore().Info(ctx, layer.Digest); err == nil {
		status = "Already exists"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first[layer.Digest] == "" {
		t.layers = append(t.layers, layer)
		t.first[layer.Digest] = status
	}
}

// begin says the first word on each layer that has come to be known.
func (t *transfer) begin() {
	t.mu.Lock()
	var fresh []jsonstream.Message
	for _, l := range t.layers {
		if t.shown[l.Digest] == "" {
			t.shown[l.Digest] = t.first[l.Digest]
			fresh = append(fresh, jsonstream.Message{ID: short(l.Digest.String()), Status: t.first[l.Digest]})
		}
	}
	t.mu.Unlock()
	for _, m := range fresh {
		say(t.say, m)
	}
}

// watch reports on the layers until the returned function is called.
func (t *transfer) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				t.report(ctx)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (t *transfer) report(ctx context.Context) {
	t.begin()
	t.mu.Lock()
	layers := slices.Clone(t.layers)
	t.mu.Unlock()
	cs := t.store.client.ContentStore()
	for _, l := range layers {
		t.mu.Lock()
		last := t.shown[l.Digest]
		t.mu.Unlock()
		if last == "Already exists" || last == "Download complete" {
			continue
		}
		msg := jsonstream.Message{ID: short(l.Digest.String())}
		if _, err := cs.Info(ctx, l.Digest); err == nil {
			msg.Status = "Download complete"
		} else if st, err := cs.Status(ctx, remotes.MakeRefKey(ctx, l)); err == nil && st.Offset > 0 {
			msg.Status, msg.Progress = "Downloading", &jsonstream.Progress{Current: st.Offset, Total: l.Size}
		}
		if msg.Status == "" {
			continue
		}
		t.mu.Lock()
		t.shown[l.Digest] = msg.Status
		t.mu.Unlock()
		say(t.say, msg)
	}
}

// complete says the last word on each layer that was not here before. Nobody else
// has to do with the transfer any more.
func (t *transfer) complete() {
	t.begin()
	for _, l := range t.layers {
		if t.shown[l.Digest] == "Already exists" {
			continue
		}
		if t.shown[l.Digest] != "Download complete" {
			say(t.say, jsonstream.Message{ID: short(l.Digest.String()), Status: "Download complete"})
		}
		say(t.say, jsonstream.Message{ID: short(l.Digest.String()), Status: "Pull complete"})
	}
}

// Push sends an image to its registry, for this host's platform.
func (s *Store) Push(ctx context.Context, ref string, auth *registry.AuthConfig, progress Progress) error {
	ctx = s.space(ctx)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return cluster.Invalidf("%v", err)
	}
	named = reference.TagNameOnly(named)
	rec, err := s.client.ImageService().Get(ctx, named.String())
	if err != nil {
		return cluster.NotFoundf("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	m, err := s.meta(ctx, rec.Target)
	if err != nil {
		return err
	}
	say(progress, jsonstream.Message{Status: fmt.Sprintf("The push refers to repository [%s]", named.Name())})
	err = s.client.Push(ctx, named.String(), rec.Target, containerd.WithResolver(s.resolver(auth)), containerd.WithPlatformMatcher(m.matcher))
	if err != nil {
		return registryError(err, named)
	}
	for _, l := range m.manifest.Layers {
		say(progress, jsonstream.Message{ID: short(l.Digest.String()), Status: "Pushed"})
	}
	if err := s.setName(ctx, named.Name()+"@"+rec.Target.Digest.String(), rec.Target); err != nil {
		return err
	}
	say(progress, jsonstream.Message{Status: fmt.Sprintf("%s: digest: %s size: %d", tagOrDigest(named), rec.Target.Digest, rec.Target.Size)})
	s.event(events.ActionPush, reference.FamiliarString(named), reference.FamiliarName(named))
	return nil
}
