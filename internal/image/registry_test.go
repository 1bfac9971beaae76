package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
)

// realRegistry runs Debian's docker-registry on a free loopback port.
func realRegistry(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("SKIPPED: pull and push need Debian's docker-registry package")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	cfg := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", dir, addr)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); ; {
		if resp, err := http.Get("http://" + addr + "/v2/"); err == nil {
			resp.Body.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal("docker-registry does not answer")
		}
		wait(t, 20*time.Millisecond)
	}
}

// wait lets another process work; conditions are what tests wait for.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

func TestPushPullDigest(t *testing.T) {
	needRoot(t)
	reg := realRegistry(t)
	from, to := newStore(t), newStore(t)
	data, id := dockerArchive(t, "one", reg+"/team/web:1")
	load(t, from, data)
	if err := from.Push(t.Context(), reg+"/team/web:1", nil, nil); err != nil {
		t.Fatal(err)
	}
	d, err := to.Digest(t.Context(), reg+"/team/web:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Platforms) != 1 || d.Platforms[0].Architecture != "amd64" || d.Descriptor.Size == 0 {
		t.Errorf("distribution: %+v", d)
	}
	pull := func(ref string) (said string) {
		err := to.Pull(t.Context(), ref, nil, nil, func(m jsonstream.Message) { said += m.ID + "|" + m.Status + "\n" })
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	first := pull(reg + "/team/web:1")
	for _, want := range []string{"1|Pulling from team/web\n", "|Pulling fs layer\n", "|Pull complete\n", "|Digest: " + d.Descriptor.Digest.String(), "|Status: Downloaded newer image for " + reg + "/team/web:1\n"} {
		if !strings.Contains(first, want) {
			t.Errorf("pull said %q, not %q", first, want)
		}
	}
	if again := pull(reg + "/team/web:1"); !strings.Contains(again, "Status: Image is up to date for") || strings.Contains(again, "fs layer") {
		t.Errorf("second pull said %q", again)
	}
	img, err := to.Resolve(t.Context(), reg+"/team/web:1@"+d.Descriptor.Digest.String())
	if err != nil || img.ID != id || img.RepoDigest != reg+"/team/web@"+d.Descriptor.Digest.String() {
		t.Errorf("by digest: %+v %v", img, err)
	}
	// The registry's tag moves: the old image stays reachable by its digest.
	other, otherID := dockerArchive(t, "two", reg+"/team/web:1")
	load(t, from, other)
	if err := from.Push(t.Context(), reg+"/team/web:1", nil, nil); err != nil {
		t.Fatal(err)
	}
	pull(reg + "/team/web:1")
	if now, err := to.Resolve(t.Context(), reg+"/team/web:1"); err != nil || now.ID != otherID {
		t.Errorf("after the tag moved: %+v %v", now, err)
	}
	if old, err := to.Inspect(t.Context(), id); err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("the old image: %+v %v", old, err)
	}
	lines, err := to.Remove(t.Context(), reg+"/team/web:1", false, true)
	if err != nil || len(lines) < 3 || !strings.Contains(lines[1].Untagged, "@sha256:") {
		t.Errorf("remove: %+v %v", lines, err)
	}
	err = to.Pull(t.Context(), reg+"/team/web:9", nil, nil, nil)
	if !errdefs.IsNotFound(err) || err.Error() != "manifest for "+reg+"/team/web:9 not found: manifest unknown: manifest unknown" {
		t.Errorf("missing tag: %v", err)
	}
}

func TestPullsAtOnce(t *testing.T) {
	needRoot(t)
	reg := realRegistry(t)
	from, to := newStore(t), newStore(t)
	data, id := dockerArchive(t, strings.Repeat("big", 1<<20), reg+"/web:1")
	load(t, from, data)
	if err := from.Push(t.Context(), reg+"/web:1", nil, nil); err != nil {
		t.Fatal(err)
	}
	results := make(chan string, 8)
	for range cap(results) {
		go func() {
			var last string
			if err := to.Pull(t.Context(), reg+"/web:1", nil, nil, func(m jsonstream.Message) { last = m.Status }); err != nil {
				last = err.Error()
			}
			results <- last
		}()
	}
	fresh := 0
	for range cap(results) {
		switch last := <-results; {
		case strings.HasPrefix(last, "Status: Downloaded newer"):
			fresh++
		case !strings.HasPrefix(last, "Status: Image is up to date"):
			t.Error(last)
		}
	}
	if fresh != 1 {
		t.Errorf("%d of 8 pulls fetched it", fresh)
	}
	if img, err := to.Resolve(t.Context(), reg+"/web:1"); err != nil || img.ID != id {
		t.Errorf("%+v %v", img, err)
	}
}

func TestRegistryErrorsInDockersWords(t *testing.T) {
	s := newStore(t, func(c *Config) { c.Insecure = []string{"plain.invalid"} })
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); ok && user == "me" && pass == "right" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="locked"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer locked.Close()
	var realm string
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			fmt.Fprint(w, `{"token":"weak"}`)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x",error="insufficient_scope"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer tokens.Close()
	realm = tokens.URL
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	host := func(u string) string { return strings.TrimPrefix(u, "http://") }
	me := func(pass string) *registry.AuthConfig { return &registry.AuthConfig{Username: "me", Password: pass} }
	for _, c := range []struct {
		name, ref string
		auth      *registry.AuthConfig
		want      string
	}{
		{"no credentials", host(locked.URL) + "/x", nil, "pull access denied for " + host(locked.URL) + "/x, repository does not exist or may require 'docker login': no basic auth credentials"},
		{"wrong password", host(locked.URL) + "/x", me("wrong"), "pull access denied for " + host(locked.URL) + "/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		{"right password, no such image", host(locked.URL) + "/x", me("right"), "manifest for " + host(locked.URL) + "/x:latest not found: manifest unknown: manifest unknown"},
		{"token without the scope", host(tokens.URL) + "/x:2", nil, "pull access denied for " + host(tokens.URL) + "/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		{"nobody listens", closed.Addr().String() + "/x", nil, fmt.Sprintf("Get \"https://%s/v2/\": dial tcp %s: connect: connection refused", closed.Addr(), closed.Addr())},
		{"no such host", "registry.invalid/x", nil, "no such host"},
		{"bad name", "a b", nil, "invalid reference format"},
	} {
		err := s.Pull(t.Context(), c.ref, nil, c.auth, nil)
		if err == nil || (err.Error() != c.want && !(len(c.want) < 30 && strings.Contains(err.Error(), c.want))) {
			t.Errorf("%s: got %v\nwant %s", c.name, err, c.want)
		}
		if _, err := s.Digest(t.Context(), c.ref, c.auth); err == nil {
			t.Errorf("%s: a digest was found", c.name)
		}
	}
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	s := New(Config{Insecure: []string{"10.99.0.0/16", "hub.local:5000", "10.2.2.2:5000"}})
	for host, want := range map[string]bool{
		"10.99.0.250:5000": true, "hub.local:5000": true, "localhost:5000": true, "127.0.0.1": true, "10.2.2.2:5000": true, "[::1]:5000": true,
		"10.98.0.1:5000": false, "hub.local:5001": false, "registry-1.docker.io": false, "10.2.2.2:5001": false,
	} {
		if got := s.isInsecure(host); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}

func TestPullCanceled(t *testing.T) {
	s := newStore(t)
	entered := make(chan struct{})
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}))
	defer hang.Close()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.Pull(ctx, strings.TrimPrefix(hang.URL, "http://")+"/x", nil, nil, nil) }()
	<-entered
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n, err := s.Import(t.Context(), bytes.NewReader(tarOf(t, file{"a", "b"})), "", "", nil, nil); err != nil || n == "" {
		t.Errorf("the store is stuck: %v", err)
	}
}
