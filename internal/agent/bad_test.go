package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// TestHostileTemplates: templates of a few bytes that would not end, or would
// fill the node's memory, are refused.
func TestHostileTemplates(t *testing.T) {
	f := factsOf(wanted(nil), here)
	double := `{{$x := "aaaaaaaaaaaaaaaa"}}` + strings.Repeat(`{{$x = print $x $x}}`, 60)
	for s, want := range map[string]string{
		`{{range 1000000000000}}{{end}}`: "may range over a field only",
		`{{range .}}{{end}}`:             "may range over a field only",
		`{{range .Service.Labels}}{{range .Service.Labels}}{{end}}{{end}}`:                       "not within another range",
		`{{if true}}{{range .Service.Labels}}{{with 1}}{{range .X}}{{end}}{{end}}{{end}}{{end}}`: "not within another range",
		`{{define "x"}}{{template "x"}}{{end}}{{template "x"}}`:                                  "may not define others",
		`{{block "x" .}}{{end}}`:                                  "may not define others",
		`{{printf "%1000000d" 1}}`:                                "printf's format",
		`{{printf "` + strings.Repeat(`%[1]999d`, 4000) + `" 1}}`: "printf's format",
		`{{printf "%*d" 1000000 1}}`:                              "printf's format",
		double:                                                    "is longer than",
		strings.ReplaceAll(double, "print $x $x", `join "" $x $x`):       "is longer than",
		strings.ReplaceAll(double, "print $x $x", `html $x $x`):          "is longer than",
		strings.ReplaceAll(double, "print $x $x", `printf "%s%s" $x $x`): "is longer than",
		`{{call .Service.Name}}`:                                         "non-function",
		`{{.Service.Secret}}`:                                            "can't evaluate field",
		`{{env "PATH"}}`:                                                 `function "env" not defined`,
	} {
		if out, err := f.expand(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s\ngot  %.80q, %.200v\nwant %s", s, out, err, want)
		}
	}
	for s, want := range map[string]string{
		`{{printf "%s-%03d" .Service.Name 7}}`:                           "web-007",
		`{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}`:       "tier=front;",
		`{{if eq .Service.Name "web"}}yes{{else}}no{{end}}`:              "yes",
		`{{with .Service}}{{.Name | printf "%q"}}{{end}}{{html "<"}}`:    `"web"&lt;`,
		`{{join "," .Service.Name .Node.Hostname}}{{len .Service.Name}}`: "web," + here.Hostname + "3",
	} {
		if out, err := f.expand(s); err != nil || out != want {
			t.Errorf("%s\ngot  %q, %v\nwant %q", s, out, err, want)
		}
	}
}

// TestNullInSpec: what a node of another version let pass is a failure of the
// task, whatever it is.
func TestNullInSpec(t *testing.T) {
	a := &Agent{}
	r := &running{a: a, task: wanted(nil)}
	a.log = slog.New(slog.DiscardHandler)
	r.task.Spec.ContainerSpec.Ulimits = []*container.Ulimit{nil}
	out := r.guarded(t.Context(), prepare) // an agent without an engine panics
	if out.err == nil || !strings.Contains(out.err.Error(), "met a defect of the node's daemon") || temporary(out.err) {
		t.Errorf("%+v", out)
	}
}
