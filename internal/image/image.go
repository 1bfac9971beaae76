// Package image keeps the images of one host in containerd's stores: pull, load,
// import, tag, list, inspect, remove. It ships skep/whoami inside the binary. It
// never runs anything. engine, httpapi and agent call it.
package image

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

var errTodo = cluster.NotImplementedf("not implemented")

// Store is the images of one daemon. A ref is a name with an optional tag or
// digest, an id, or a unique prefix of one.
type Store struct{}

// Image is what a container is made from.
type Image struct {
	ID     string // sha256:… of the configuration
	Name   string // the familiar name it was found by
	Config ocispec.Image
	// ChainID is the snapshot its layers are unpacked into.
	ChainID string
	// RepoDigest is name@sha256:… where it is known.
	RepoDigest string
}

// Progress receives what a client is shown while an image is moved.
type Progress func(jsonstream.Message)

// ListOptions are those of image ls.
type ListOptions struct {
	All     bool
	Filters map[string]map[string]bool
}

// Resolve finds an image and makes sure that its layers are unpacked. An unknown
// one is errdefs.ErrNotFound in Docker's words ("No such image: x").
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) { return Image{}, errTodo }

// Pull fetches an image from its registry.
func (s *Store) Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress Progress) error {
	return errTodo
}

// Digest asks the registry for what ref points at and its platforms, as the
// /distribution endpoint answers.
func (s *Store) Digest(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	return registry.DistributionInspect{}, errTodo
}

// Load reads a tar of docker save's or OCI's layout (compressed or not).
func (s *Store) Load(ctx context.Context, tar io.Reader, progress Progress) error { return errTodo }

// Save writes images as a tar that Load reads.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error { return errTodo }

// Import makes an image of one layer out of a file system's tar. changes are
// Dockerfile instructions (CMD, ENV, EXPOSE …).
func (s *Store) Import(ctx context.Context, tar io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (id string, err error) {
	return "", errTodo
}

// Tag gives an image another name.
func (s *Store) Tag(ctx context.Context, ref, target string) error { return errTodo }

// List returns what image ls shows.
func (s *Store) List(ctx context.Context, opts ListOptions) ([]image.Summary, error) {
	return nil, errTodo
}

// Inspect returns everything about an image.
func (s *Store) Inspect(ctx context.Context, ref string) (image.InspectResponse, error) {
	return image.InspectResponse{}, errTodo
}

// History returns the steps that made an image, newest first.
func (s *Store) History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error) {
	return nil, errTodo
}

// Remove removes a name, and the image with its last one. inUse returns the id
// of a container that uses the image id, or "".
func (s *Store) Remove(ctx context.Context, ref string, force, prune bool) ([]image.DeleteResponse, error) {
	return nil, errTodo
}

// Prune removes dangling images (or, with all, unused ones).
func (s *Store) Prune(ctx context.Context, all bool, until time.Time) (image.PruneReport, error) {
	return image.PruneReport{}, errTodo
}
