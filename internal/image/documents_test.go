package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// padded makes a document that is too large to be read, and valid otherwise.
func padded(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw) + strings.Repeat(" ", maxManifest)
}

func compact(t *testing.T, v any) string { return strings.TrimRight(padded(t, v), " ") }

func descriptor(mediaType, body string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(body), Size: int64(len(body))}
}

// layout makes an archive in OCI's layout of an image without layers. big names
// the document that is too large.
func layout(t *testing.T, big string) []byte {
	t.Helper()
	doc := func(name string, v any) string {
		if name == big {
			return padded(t, v)
		}
		return compact(t, v)
	}
	config := doc("config", map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers"}})
	manifest := doc("manifest", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: descriptor("application/vnd.own", config)})
	index := doc("index", ocispec.Index{Manifests: []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageManifest, manifest)}})
	blob := func(body string) file { return file{"blobs/sha256/" + digest.FromString(body).Encoded(), body} }
	return tarOf(t, file{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, blob(config), blob(manifest), file{"index.json", index})
}

func TestLoadRefusesLargeDocuments(t *testing.T) {
	s := newStore(t)
	manifest := compact(t, []any{map[string]any{"Config": "config.json", "RepoTags": []string{"big:1"}, "Layers": []string{}}})
	config := padded(t, map[string]any{"architecture": "amd64", "os": "linux"})
	for name, data := range map[string][]byte{
		"docker's configuration": tarOf(t, file{"config.json", config}, file{"manifest.json", manifest}),
		"OCI's index":            layout(t, "index"),
		"OCI's manifest":         layout(t, "manifest"),
		"OCI's configuration":    layout(t, "config"),
	} {
		err := s.Load(t.Context(), bytes.NewReader(data), nil)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "such a document may") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Load(t.Context(), bytes.NewReader(layout(t, "none")), nil); err != nil && strings.Contains(err.Error(), "such a document may") {
		t.Errorf("one of the usual size: %v", err)
	}
	if got := tags(t, s, nil); len(got) > 1 {
		t.Errorf("what was refused left images: %v", got)
	}
}

// TestLoadThatIsCutOffLeavesNothing: a blob that has come in part takes room on
// the disk, and nobody would ever see it.
func TestLoadThatIsCutOffLeavesNothing(t *testing.T) {
	s := newStore(t)
	data, _ := dockerArchive(t, strings.Repeat("x", 4<<20), "cut:1")
	if err := s.Load(t.Context(), bytes.NewReader(data[:2<<20]), nil); err == nil {
		t.Fatal("half an archive was loaded")
	}
	left, err := s.client.ContentStore().ListStatuses(s.space(t.Context()))
	if err != nil || len(left) > 0 {
		t.Errorf("parts left: %v %v", left, err)
	}
}

// fakeRegistry answers as handle does.
func fakeRegistry(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// endless writes JSON without end, until nobody listens or it is far too much.
func endless(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"token":"`)
	for range 4 * maxManifest >> 10 {
		if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
			return
		}
	}
	io.WriteString(w, `"}`)
}

func TestRegistryThatNeverEnds(t *testing.T) {
	s := newStore(t)
	var url string
	token := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/token"):
			endless(w)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x",scope="repository:web:pull"`, url))
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	url = token
	manifest := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
		w.Header().Set("Content-Length", "100")
		if r.Method != http.MethodHead {
			w.Header().Del("Content-Length")
			endless(w)
		}
	})
	for name, reg := range map[string]string{"token": token, "manifest": manifest} {
		_, err := s.Digest(t.Context(), reg+"/web:1", nil)
		if err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if name == "token" && !strings.Contains(err.Error(), "longer than") {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Pull(t.Context(), reg+"/web:1", nil, nil, nil); err == nil || name == "token" && !strings.Contains(err.Error(), "longer than") {
			t.Errorf("pull, %s: %v", name, err)
		}
	}
}

// TestRegistryConfigurations: a manifest's word on its configuration is a
// stranger's: it may be huge, of no size or of no digest.
func TestRegistryConfigurations(t *testing.T) {
	s := newStore(t)
	good := descriptor("application/vnd.own", "{}")
	for name, change := range map[string]func(*ocispec.Descriptor){
		"huge":             func(d *ocispec.Descriptor) { d.Size = maxManifest + 1 },
		"of no size":       func(d *ocispec.Descriptor) { d.Size = 0 },
		"of no digest":     func(d *ocispec.Descriptor) { d.Digest = "" },
		"of an odd digest": func(d *ocispec.Descriptor) { d.Digest = "md7:00" },
	} {
		config := good
		change(&config)
		body := compact(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
		reg := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				t.Errorf("%s: %s was asked for", name, r.URL.Path)
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString(body).String())
			io.WriteString(w, body)
		})
		if _, err := s.Digest(t.Context(), reg+"/web:1", nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("digest, %s: %v", name, err)
		}
		if err := s.Pull(t.Context(), reg+"/web:1", nil, nil, nil); err == nil {
			t.Errorf("pull, %s: it was taken", name)
		}
	}
}

// TestProgressComesOneByOne: what a client is shown is written by one at a time,
// also while a pull goes on that was broken off before.
func TestProgressComesOneByOne(t *testing.T) {
	s := newStore(t)
	var inside, said atomic.Int32
	layers := []ocispec.Descriptor{
		descriptor(ocispec.MediaTypeImageLayer, strings.Repeat("one", 1000)), descriptor(ocispec.MediaTypeImageLayer, strings.Repeat("two", 1000)),
		descriptor(ocispec.MediaTypeImageLayer, strings.Repeat("six", 1000)),
	}
	config := compact(t, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{
		"type": "layers", "diff_ids": []digest.Digest{layers[0].Digest, layers[1].Digest, layers[2].Digest},
	}})
	body := compact(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: descriptor(ocispec.MediaTypeImageConfig, config), Layers: layers})
	reg := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromString(body).String())
			io.WriteString(w, body)
		case strings.HasSuffix(r.URL.Path, digest.FromString(config).String()):
			io.WriteString(w, config)
		default:
			for range 100 {
				if said.Load() < 4 {
					wait(t, 50*time.Millisecond)
				}
			}
			w.WriteHeader(http.StatusNotFound)
		}
	})
	ctx := s.space(t.Context())
	part, err := content.OpenWriter(ctx, s.client.ContentStore(), content.WithRef(remotes.MakeRefKey(ctx, layers[0])), content.WithDescriptor(layers[0]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write([]byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	err = s.Pull(t.Context(), reg+"/web:1", nil, nil, func(jsonstream.Message) { // it fails: there are no layers
		said.Add(1)
		if inside.Add(1) > 1 {
			t.Error("two at once")
		}
		wait(t, 150*time.Millisecond) // longer than from one look at the layers to the next
		inside.Add(-1)
	})
	if said.Load() < 4 { // where from, and of each layer
		t.Errorf("%d messages: %v", said.Load(), err)
	}
}
