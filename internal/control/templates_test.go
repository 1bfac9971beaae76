package control

import (
	"strings"
	"testing"
)

func TestTemplatesThatNoNodeCouldFillIn(t *testing.T) {
	for s, want := range map[string]string{
		"plain": "", "{{.Service.Name}}-{{.Task.Slot}}": "", "{{.Service.Labels.tier}}": "",
		`{{index .Service.Labels "a.b"}}`: "", "{{if .Node.ID}}{{.Node.Platform.OS}}{{end}}": "",
		`{{join "-" .Task.Name .Node.Hostname}}`: "", "{{range .Service.Labels}}{{.}}{{end}}": "", "{{with .Task}}{{.Name}}{{end}}": "",
		"{{.Bogus}}":        `executing "expansion" at <.Bogus>: can't evaluate field Bogus in type *template.Context`,
		"{{.Service.Nope}}": "can't evaluate field Nope", "{{if .Bogus}}{{end}}": "can't evaluate field Bogus",
		"{{": "unclosed action", "{{nofunc}}": `function "nofunc" not defined`,
	} {
		err := checkExpansion(s)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
}
