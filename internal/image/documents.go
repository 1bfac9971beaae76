package image

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

// What is read into memory whole is bounded, whoever sent it: an index, a
// manifest, a configuration, a registry's answers. Layers are not, as in Docker:
// they go from stream to disk.

const maxManifest = 8 << 20 // what such a document may weigh before it is refused

func tooLarge(what string, size int64) error {
	return cluster.Invalidf("%s weighs %d bytes, more than the %d that such a document may", what, size, maxManifest)
}

// documents reads blobs that are read into memory whole. Which those are its
// caller knows: the media type is whatever the image's maker wrote.
type documents struct{ content.Provider }

func (d documents) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := d.Provider.ReaderAt(ctx, desc)
	if err == nil && ra.Size() > maxManifest {
		ra.Close()
		return nil, tooLarge(desc.Digest.String(), ra.Size())
	}
	return ra, err
}

func (s *Store) documents() documents { return documents{s.client.ContentStore()} }

// archived is the content store to a library that reads an archive's documents,
// by their types, beside its layers.
type archived struct{ content.Store }

func (a archived) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if isDocument(desc) {
		return documents{a.Store}.ReaderAt(ctx, desc)
	}
	return a.Store.ReaderAt(ctx, desc)
}

func isDocument(desc ocispec.Descriptor) bool {
	return images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) || images.IsConfigType(desc.MediaType)
}

// fetchable refuses a document before it is fetched. What is fetched then has
// the size that is declared, or is refused with its digest.
func fetchable(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return cluster.Invalidf("digest %q: %v", desc.Digest, err)
	}
	if desc.Size <= 0 || desc.Size > maxManifest {
		return tooLarge(desc.Digest.String(), desc.Size)
	}
	return nil
}

// checked returns what a document that has been fetched says it is made of, when
// that may be fetched too.
func checked(desc ocispec.Descriptor, children []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	for i, c := range children {
		config := i == 0 && images.IsManifestType(desc.MediaType) // whatever its type says
		if !config && !isDocument(c) {
			continue
		}
		if err := fetchable(c); err != nil {
			return nil, err
		}
	}
	return children, nil
}

// answers bounds what a registry, or whoever gives tokens for it, answers to
// anything but a request for a blob.
type answers struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (a answers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := a.RoundTripper.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	asked := req // a blob may be elsewhere than where it was asked for
	for asked.Response != nil && asked.Response.Request != nil {
		asked = asked.Response.Request
	}
	if !strings.Contains(asked.URL.Path, "/blobs/") {
		resp.Body = &boundedBody{ReadCloser: resp.Body, what: "the answer of " + req.URL.Host, left: maxManifest}
	}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	what string
	left int64 // may fall to -1: then there was more
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, cluster.Invalidf("%s is longer than %d bytes", b.what, maxManifest)
	}
	p = p[:min(int64(len(p)), b.left+1)]
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, cluster.Invalidf("%s is longer than %d bytes", b.what, maxManifest)
	}
	return n, err
}
