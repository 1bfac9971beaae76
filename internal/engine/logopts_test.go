package engine

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

func TestLogAttrs(t *testing.T) {
	rec := record{
		ID: strings.Repeat("0123456789abcdef", 4), Name: "box", ImageName: "busybox:1", ImageID: "sha256:fedcba9876543210",
		Path: "sh", Args: []string{"-c", "x"},
		Config: &container.Config{
			Labels: map[string]string{"tier": "front", "team.a": "1", "team.b": "2", "both": "label"},
			Env:    []string{"PATH=/bin", "both=env", "WEB_PORT=80", "WEB_URL=a=b", "bare"},
		},
	}
	for _, c := range []struct {
		opts map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"labels": "none,,", "env": "bare"}, ""},
		{map[string]string{"labels": "tier,none,both"}, `{"both":"label","tier":"front"}`},
		{map[string]string{"labels": "both", "env": "both,WEB_URL"}, `{"WEB_URL":"a=b","both":"env"}`},
		{map[string]string{"labels-regex": "^team[.]"}, `{"team.a":"1","team.b":"2"}`},
		{map[string]string{"env-regex": "^WEB", "labels": "tier"}, `{"WEB_PORT":"80","WEB_URL":"a=b","tier":"front"}`},
		{map[string]string{"tag": "{{.Name}}/{{.ID}}"}, `{"tag":"box/0123456789ab"}`},
		{map[string]string{"tag": `{{upper .ImageName}} {{.ImageID}} {{.ImageFullID}} {{.Command}} {{.DaemonName}}`},
			`{"tag":"BUSYBOX:1 sha256:fedcb sha256:fedcba9876543210 sh -c x docker"}`},
		{map[string]string{"tag": `{{with .Name}}{{if eq . "box"}}<{{.}}>{{end}}{{end}}`, "labels": "tag"}, `{"tag":"\u003cbox\u003e"}`},
		{map[string]string{"tag": `{{index .ContainerLabels "tier"}} {{.FullID}}`}, `{"tag":"front ` + rec.ID + `"}`},
		{map[string]string{"tag": " "}, `{"tag":" "}`},
	} {
		rec.HostConfig = &container.HostConfig{LogConfig: container.LogConfig{Type: logJSONFile, Config: c.opts}}
		if err := validateLog(logJSONFile, c.opts); err != nil {
			t.Errorf("%v: %v", c.opts, err)
		}
		if got, err := logAttrs(rec); err != nil || got != c.want {
			t.Errorf("%v: %s, %v\nwant %s", c.opts, got, err, c.want)
		}
	}
}

func TestLogOptsRefused(t *testing.T) {
	for _, c := range []struct{ driver, k, v, want string }{
		{logJSONFile, "labels-regex", "(", "error parsing regexp: missing closing ): `(`"},
		{logJSONFile, "env-regex", "[", "error parsing regexp: missing closing ]: `[`"},
		{logJSONFile, "tag", "{{", "template: log-tag:1: unclosed action"},
		{logJSONFile, "tag", "{{range 1000000000}}x{{end}}", "template: log-tag: {{range 1000000000}}x{{end}} is not for tags"},
		{logJSONFile, "tag", `{{if true}}{{template "log-tag"}}{{end}}`, `template: log-tag: {{template "log-tag"}} is not for tags`},
		{logJSONFile, "tag", `{{define "x"}}{{template "x"}}{{end}}`, `template: log-tag: "x" is defined inside a tag`},
		{logJSONFile, "tag", "{{else}}", "template: log-tag:1: unexpected {{else}}"},
		{logJSONFile, "max-file", "0", "max-file cannot be less than 1"},
		{logJSONFile, "nosuch", "1", "unknown log opt 'nosuch' for json-file log driver"},
		{logLocal, "labels", "a", "unknown log opt 'labels' for local log driver"},
		{logLocal, "tag", "a", "unknown log opt 'tag' for local log driver"},
	} {
		if err := validateLog(c.driver, map[string]string{c.k: c.v}); err == nil || err.Error() != c.want {
			t.Errorf("%s %s=%s: %v\nwant %s", c.driver, c.k, c.v, err, c.want)
		}
	}
}

// TestLogDefaults: the daemon's options hold for its own driver, where the
// container says nothing else. The docker command sends an empty map when no
// option was given.
func TestLogDefaults(t *testing.T) {
	e := &Engine{cfg: Config{LogDriver: logJSONFile, LogOpts: map[string]string{"labels": "tier", "max-size": "1m"}}}
	for _, c := range []struct {
		in, want container.LogConfig
	}{
		{container.LogConfig{}, container.LogConfig{Type: logJSONFile, Config: map[string]string{"labels": "tier", "max-size": "1m"}}},
		{container.LogConfig{Config: map[string]string{}}, container.LogConfig{Type: logJSONFile, Config: map[string]string{"labels": "tier", "max-size": "1m"}}},
		{container.LogConfig{Type: logJSONFile, Config: map[string]string{"max-size": "2m"}},
			container.LogConfig{Type: logJSONFile, Config: map[string]string{"labels": "tier", "max-size": "2m"}}},
		{container.LogConfig{Type: logLocal}, container.LogConfig{Type: logLocal, Config: map[string]string{}}},
	} {
		got := c.in
		if err := e.validateLogConfig(&got); err != nil {
			t.Errorf("%+v: %v", c.in, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v: %s", c.in, diff)
		}
	}
	if len(e.cfg.LogOpts) != 2 {
		t.Errorf("the daemon's own options: %v", e.cfg.LogOpts)
	}
}

// TestLogAttrsWritten leads them through the shim to the file and back.
func TestLogAttrsWritten(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sh", "-c", "echo one; echo two >&2"}, func(q *CreateRequest) {
		q.Request.Config.Labels = map[string]string{"tier": `a "b"`}
		q.Request.Config.Env = []string{"COLOUR=red", "SECRET=not asked for"}
		q.Request.HostConfig.LogConfig = container.LogConfig{Config: map[string]string{"labels": "tier", "env": "COLOUR", "tag": "{{.ImageName}}"}}
	})
	r.end(id)
	want := map[string]string{"tier": `a "b"`, "COLOUR": "red", "tag": "busybox:1"}
	n := 0
	r.must(r.Logs(t.Context(), id, LogsOptions{Stdout: true, Stderr: true, Tail: -1}, nil, func(e LogEntry) error {
		n++
		if diff := cmp.Diff(want, e.Attrs); diff != "" {
			t.Errorf("%s: %s", e.Line, diff)
		}
		return nil
	}))
	if n != 2 {
		t.Errorf("%d lines", n)
	}
	data, err := os.ReadFile(r.logPath(id))
	r.must(err)
	if s := `","attrs":{"COLOUR":"red","tag":"busybox:1","tier":"a \"b\""},"time":"`; strings.Count(string(data), s) != 2 {
		t.Errorf("the log lacks %s:\n%s", s, data)
	}
}
