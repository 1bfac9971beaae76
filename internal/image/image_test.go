package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	dockerimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"github.com/skep-dev/skep/internal/engine/layers"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: unpacking images mounts file systems and needs root")
	}
}

// newStore opens a store of its own. use sets which container uses which image.
func newStore(t *testing.T, change ...func(*Config)) *Store {
	t.Helper()
	needRoot(t)
	l, err := layers.Open(t.Context(), layers.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{Client: l.Client, Snapshotter: l.Snapshotter}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

type file struct{ name, body string }

func tarOf(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// archive makes what docker save writes: an image of one layer. It returns the
// image's id too.
func dockerArchive(t *testing.T, body string, names ...string) (data []byte, id string) {
	t.Helper()
	layer := tarOf(t, file{"etc/content", body})
	cfg, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z",
		"config":  map[string]any{"Cmd": []string{"/bin/show"}, "Labels": map[string]string{"body": body}, "Healthcheck": map[string]any{"Test": []string{"CMD", "true"}}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digest.FromBytes(layer).String()}},
		"history": []any{map[string]any{"created": "2024-05-06T07:08:09Z", "created_by": "add " + body}, map[string]any{"created_by": "CMD", "empty_layer": true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": names, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	data = tarOf(t, file{"layer.tar", string(layer)}, file{"config.json", string(cfg)}, file{"manifest.json", string(manifest)})
	return data, digest.FromBytes(cfg).String()
}

func load(t *testing.T, s *Store, data []byte) (said string) {
	t.Helper()
	err := s.Load(t.Context(), bytes.NewReader(data), func(m jsonstream.Message) { said += m.Stream })
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func tags(t *testing.T, s *Store, filters map[string]map[string]bool) (all []string) {
	t.Helper()
	list, err := s.List(t.Context(), ListOptions{Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		all = append(all, strings.Join(i.RepoTags, " "))
	}
	return all
}

func TestLoadResolveInspect(t *testing.T) {
	s := newStore(t)
	data, id := dockerArchive(t, "one", "web:1", "example.com/team/web:1")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(data)
	z.Close()
	said := load(t, s, zipped.Bytes())
	if want := "Loaded image: web:1\nLoaded image: example.com/team/web:1\n"; said != want {
		t.Errorf("said %q, want %q", said, want)
	}
	for _, ref := range []string{"web:1", "docker.io/library/web:1", "example.com/team/web:1", id, strings.TrimPrefix(id, "sha256:"), id[7:15]} {
		img, err := s.Resolve(t.Context(), ref)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if img.ID != id || img.Config.Config.Cmd[0] != "/bin/show" || img.Ext.Healthcheck == nil {
			t.Errorf("%s: got %+v", ref, img)
		}
		if _, err := s.client.SnapshotService(s.snapshotter).Stat(s.space(t.Context()), img.ChainID); err != nil {
			t.Errorf("%s is not unpacked: %v", ref, err)
		}
	}
	in, err := s.Inspect(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"web:1", "example.com/team/web:1"}, in.RepoTags); diff != "" {
		t.Error(diff)
	}
	if in.Size <= 0 || in.Created != "2024-05-06T07:08:09Z" || len(in.RootFS.Layers) != 1 || len(in.RepoDigests) != 0 {
		t.Errorf("inspect: %+v", in)
	}
	h, err := s.History(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	if len(h) != 2 || h[0].ID != id || h[0].CreatedBy != "CMD" || h[0].Size != 0 || h[1].ID != "<missing>" || h[1].Size == 0 {
		t.Errorf("history: %+v", h)
	}
}

func TestUnknownAndInvalidNames(t *testing.T) {
	s := newStore(t)
	for ref, want := range map[string]string{
		"nope":                   "No such image: nope:latest",
		"nope:3":                 "No such image: nope:3",
		strings.Repeat("ab", 32): "No such image: " + strings.Repeat("ab", 32),
		"abcdef":                 "No such image: abcdef:latest",
	} {
		_, err := s.Resolve(t.Context(), ref)
		if !errdefs.IsNotFound(err) || err.Error() != want {
			t.Errorf("%s: %v, want %s", ref, err, want)
		}
	}
	_, err := s.Resolve(t.Context(), "UPPER")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "must be lowercase") {
		t.Errorf("UPPER: %v", err)
	}
	for name, data := range map[string][]byte{"garbage": []byte("not a tar at all"), "empty": nil, "foreign tar": tarOf(t, file{"x", "y"})} {
		if err := s.Load(t.Context(), bytes.NewReader(data), nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("load of %s: %v", name, err)
		}
	}
	if got := tags(t, s, nil); len(got) != 0 {
		t.Errorf("errors left images: %v", got)
	}
}

func TestMovedNameLeavesDanglingImage(t *testing.T) {
	s := newStore(t)
	first, firstID := dockerArchive(t, "one", "web:latest")
	second, _ := dockerArchive(t, "two", "web:latest")
	load(t, s, first)
	if said := load(t, s, second); !strings.Contains(said, "renaming the old one with ID "+firstID) {
		t.Errorf("said %q", said)
	}
	dangling, err := s.List(t.Context(), ListOptions{Filters: map[string]map[string]bool{"dangling": {"true": true}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(dangling) != 1 || dangling[0].ID != firstID {
		t.Fatalf("dangling: %+v", dangling)
	}
	if _, err := s.Resolve(t.Context(), firstID); err != nil {
		t.Errorf("dangling image: %v", err)
	}
	report, err := s.Prune(t.Context(), false, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.ImagesDeleted) == 0 || report.ImagesDeleted[0].Deleted != firstID || report.SpaceReclaimed == 0 {
		t.Errorf("prune: %+v", report)
	}
	if diff := cmp.Diff([]string{"web:latest"}, tags(t, s, nil)); diff != "" {
		t.Error(diff)
	}
	load(t, s, first) // a name for the image again: nothing dangles but the other
	if err := s.Tag(t.Context(), "web", "kept:1"); err != nil {
		t.Fatal(err)
	}
	load(t, s, second)
	if diff := cmp.Diff([]string(nil), tags(t, s, map[string]map[string]bool{"dangling": {"true": true}})); diff != "" {
		t.Error(diff)
	}
}

func TestFilters(t *testing.T) {
	s := newStore(t)
	one, _ := dockerArchive(t, "one", "team/web:1", "db:1")
	two, _ := dockerArchive(t, "two", "team/web:2")
	load(t, s, one)
	load(t, s, two)
	for _, c := range []struct {
		key, value string
		want       []string
	}{
		{"reference", "team/*", []string{"team/web:2", "team/web:1"}},
		{"reference", "db", []string{"db:1"}},
		{"reference", "*:2", nil},
		{"label", "body=two", []string{"team/web:2"}},
		{"label", "nothing", nil},
		{"until", "2020-01-01", nil},
	} {
		got := tags(t, s, map[string]map[string]bool{c.key: {c.value: true}})
		if len(got) != len(c.want) {
			t.Errorf("%s=%s: %q, want %q", c.key, c.value, got, c.want)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(strings.Join(got, " "), w) {
				t.Errorf("%s=%s: %q, want %q", c.key, c.value, got, c.want)
			}
		}
	}
	if _, err := s.List(t.Context(), ListOptions{Filters: map[string]map[string]bool{"colour": {"red": true}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown filter: %v", err)
	}
}

func TestRemoveInDockersWords(t *testing.T) {
	var user string
	var running bool
	s := newStore(t, func(c *Config) { c.InUse = func(string) (string, bool) { return user, running } })
	data, id := dockerArchive(t, "one", "web:1", "web:2")
	load(t, s, data)
	remove := func(ref string, force bool) (lines []dockerimage.DeleteResponse, text string) {
		lines, err := s.Remove(t.Context(), ref, force, true)
		if err != nil {
			text = err.Error()
		}
		return lines, text
	}
	if _, err := remove(id[7:19], false); err != "conflict: unable to delete "+id[7:19]+" (must be forced) - image is referenced in multiple repositories" {
		t.Errorf("two names by id: %s", err)
	}
	user = strings.Repeat("c", 64)
	if lines, err := remove("web:1", false); err != "" || cmp.Diff([]dockerimage.DeleteResponse{{Untagged: "web:1"}}, lines) != "" {
		t.Errorf("one of two names: %v %s", lines, err)
	}
	if _, err := remove("web:2", false); err != `conflict: unable to remove repository reference "web:2" (must force) - container cccccccccccc is using its referenced image `+id[7:19] {
		t.Errorf("last name of a used image: %s", err)
	}
	if _, err := remove(id, false); err != "conflict: unable to delete "+id[7:19]+" (must be forced) - image is being used by stopped container cccccccccccc" {
		t.Errorf("used by a stopped container: %s", err)
	}
	running = true
	if _, err := remove(id, true); err != "conflict: unable to delete "+id[7:19]+" (cannot be forced) - image is being used by running container cccccccccccc" {
		t.Errorf("used by a running container: %s", err)
	}
	if lines, err := remove("web:2", true); err != "" || len(lines) != 1 {
		t.Errorf("forced name of a running container's image: %v %s", lines, err)
	}
	if _, err := s.Resolve(t.Context(), id); err != nil {
		t.Errorf("the image a container runs is gone: %v", err)
	}
	user = ""
	lines, err := remove(id, false)
	if err != "" || len(lines) != 2 || lines[0].Deleted != id {
		t.Errorf("dangling: %v %s", lines, err)
	}
	if _, err := remove("web:2", false); err != "No such image: web:2" {
		t.Errorf("removed: %s", err)
	}
}

func TestImportAndSaveAgain(t *testing.T) {
	s := newStore(t)
	id, err := s.Import(t.Context(), bytes.NewReader(tarOf(t, file{"bin/x", "binary"})), "mine:1", "Imported from -", []string{
		`CMD ["/bin/x","-v"]`, "ENTRYPOINT echo hi", `ENV A=1 B="two words"`, "ENV C three words", "EXPOSE 80 53/udp", "WORKDIR srv",
		"USER 1000:1000", `LABEL a.b="c d"`, "VOLUME /data", "STOPSIGNAL SIGQUIT", "ONBUILD RUN true", `HEALTHCHECK --interval=5s --retries=2 CMD curl localhost`,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := s.Save(t.Context(), []string{"mine:1"}, &saved); err != nil {
		t.Fatal(err)
	}
	other := newStore(t)
	load(t, other, saved.Bytes())
	in, err := other.Inspect(t.Context(), "mine:1")
	if err != nil {
		t.Fatal(err)
	}
	c := in.Config
	if in.ID != id || in.Comment != "Imported from -" {
		t.Errorf("id %s comment %q, want %s", in.ID, in.Comment, id)
	}
	got := map[string]any{"cmd": c.Cmd, "entry": c.Entrypoint, "env": c.Env, "dir": c.WorkingDir, "user": c.User, "label": c.Labels["a.b"], "stop": c.StopSignal,
		"ports": len(c.ExposedPorts), "volumes": len(c.Volumes), "onbuild": c.OnBuild, "test": c.Healthcheck.Test, "interval": c.Healthcheck.Interval, "retries": c.Healthcheck.Retries}
	want := map[string]any{"cmd": []string{"/bin/x", "-v"}, "entry": []string{"/bin/sh", "-c", "echo hi"}, "env": []string{"A=1", "B=two words", "C=three words"}, "dir": "/srv",
		"user": "1000:1000", "label": "c d", "stop": "SIGQUIT", "ports": 2, "volumes": 1, "onbuild": []string{"RUN true"},
		"test": []string{"CMD-SHELL", "curl localhost"}, "interval": 5 * time.Second, "retries": 2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBadChanges(t *testing.T) {
	for change, want := range map[string]string{
		"RUN true":                 "run is not a valid change command",
		"CMD":                      "CMD requires at least one argument",
		`ENV A="open`:              "matching",
		"EXPOSE http":              "http",
		"HEALTHCHECK --x=1s CMD a": "unknown flag: x",
	} {
		if _, err := parseChanges([]string{change}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", change, err, want)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(`ENV A="b c" D=\ e`)
	f.Add(`HEALTHCHECK --interval=1s CMD ["a"]`)
	f.Fuzz(func(t *testing.T, line string) { parseChanges([]string{line}) })
}

// A load that is cut off must not lend its bytes to the next one.
func TestInterruptedLoad(t *testing.T) {
	s := newStore(t)
	one, _ := dockerArchive(t, strings.Repeat("one", 9000), "web:1")
	two, id := dockerArchive(t, strings.Repeat("two", 9000), "web:1")
	if err := s.Load(t.Context(), bytes.NewReader(one[:14000]), nil); err == nil {
		t.Fatal("half an archive was loaded")
	}
	load(t, s, two)
	if img, err := s.Resolve(context.WithoutCancel(t.Context()), "web:1"); err != nil || img.ID != id {
		t.Errorf("%+v %v", img, err)
	}
}
