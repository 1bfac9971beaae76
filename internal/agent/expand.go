package agent

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// facts is what a template can ask for. None of its types has methods: a
// template could call them.
type facts struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct{ ID, Name, Slot string }
}

func factsOf(t *cluster.WantedTask, node *swarm.NodeDescription) *facts {
	f := &facts{}
	f.Service.ID, f.Service.Name, f.Service.Labels = t.ServiceID, t.ServiceName, t.ServiceLabels
	f.Node.ID, f.Node.Hostname = t.NodeID, node.Hostname
	f.Node.Platform.Architecture, f.Node.Platform.OS = node.Platform.Architecture, node.Platform.OS
	f.Task.ID, f.Task.Name, f.Task.Slot = t.ID, t.Name, t.NodeID
	if t.Slot > 0 {
		f.Task.Slot = strconv.Itoa(t.Slot)
	}
	return f
}

var templateFuncs = template.FuncMap{
	// join takes the separator first.
	"join": func(s ...string) (string, error) {
		if len(s) == 0 {
			return "", cluster.Invalidf("join needs a separator")
		}
		return bounded(strings.Join(s[1:], s[0]))
	},
	// The language's own, which a few bytes could have make gigabytes.
	"print":   func(args ...any) (string, error) { return bounded(fmt.Sprint(args...)) },
	"println": func(args ...any) (string, error) { return bounded(fmt.Sprintln(args...)) },
	"printf": func(format string, args ...any) (string, error) {
		if len(format) > 4096 || wideVerb.MatchString(format) {
			return "", cluster.Invalidf("printf's format is too long, too wide or counts its arguments")
		}
		return bounded(fmt.Sprintf(format, args...))
	},
	"html":     func(args ...any) (string, error) { return bounded(template.HTMLEscaper(args...)) },
	"js":       func(args ...any) (string, error) { return bounded(template.JSEscaper(args...)) },
	"urlquery": func(args ...any) (string, error) { return bounded(template.URLQueryEscaper(args...)) },
}

// wideVerb finds widths and precisions of more than three digits, those taken
// from arguments, and arguments used again.
var wideVerb = regexp.MustCompile(`[0-9]{4}|[*]|\[`)

func bounded(s string) (string, error) {
	if len(s) > maxExpansion/16 {
		return "", cluster.Invalidf("a template's value is longer than %d bytes", maxExpansion/16)
	}
	return s, nil
}

// checkTemplate refuses what could go on without end: loops in loops or over
// anything but a field, and templates that call templates.
func checkTemplate(t *template.Template) error {
	if len(t.Templates()) > 1 {
		return cluster.Invalidf("a template may not define others")
	}
	if t.Tree == nil {
		return nil
	}
	return checkNode(t.Tree.Root, false)
}

func checkNode(n parse.Node, looped bool) error {
	branch := func(b *parse.BranchNode, looped bool) error {
		if err := checkNode(b.List, looped); err != nil || b.ElseList == nil {
			return err
		}
		return checkNode(b.ElseList, looped)
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, child := range n.Nodes {
			if err := checkNode(child, looped); err != nil {
				return err
			}
		}
	case *parse.IfNode:
		return branch(&n.BranchNode, looped)
	case *parse.WithNode:
		return branch(&n.BranchNode, looped)
	case *parse.TemplateNode:
		return cluster.Invalidf("a template may not call another")
	case *parse.RangeNode:
		if looped || len(n.Pipe.Cmds) != 1 || len(n.Pipe.Cmds[0].Args) != 1 || n.Pipe.Cmds[0].Args[0].Type() != parse.NodeField {
			return cluster.Invalidf("a template may range over a field only, and not within another range")
		}
		return branch(&n.BranchNode, true)
	}
	return nil
}

// maxExpansion bounds what a template can make of a few bytes.
const maxExpansion = 1 << 20

type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxExpansion {
		return 0, cluster.Invalidf("the expansion is longer than %d bytes", maxExpansion)
	}
	return l.Builder.Write(p)
}

func (f *facts) expand(s string) (string, error) {
	if !strings.Contains(s, "{{") {
		return s, nil
	}
	return expandWith(s, f, templateFuncs)
}

func expandWith(s string, f *facts, funcs template.FuncMap) (string, error) {
	t, err := template.New("expansion").Option("missingkey=error").Funcs(funcs).Parse(s)
	if err != nil {
		return "", err
	}
	if err := checkTemplate(t); err != nil {
		return "", err
	}
	var out limited
	if err := t.Execute(&out, f); err != nil {
		return "", err
	}
	return out.String(), nil
}

// env expands the values of variables.
func (f *facts) env(values []string) ([]string, error) {
	var all []string
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		if ok {
			expanded, err := f.expand(value)
			if err != nil {
				return nil, fmt.Errorf("expanding env failed: expanding env %q: %w", v, err)
			}
			v = name + "=" + expanded
		}
		all = append(all, v)
	}
	return all, nil
}

// mounts expands sources, targets, and the labels and driver options of volumes.
func (f *facts) mounts(mounts []mount.Mount) ([]mount.Mount, error) {
	all := slices.Clone(mounts)
	for i := range all {
		m := &all[i]
		for name, s := range map[string]*string{"source": &m.Source, "target": &m.Target} {
			expanded, err := f.expand(*s)
			if err != nil {
				return nil, fmt.Errorf("expanding mounts failed: expanding mount %s %q: %w", name, *s, err)
			}
			*s = expanded
		}
		if m.VolumeOptions == nil {
			continue
		}
		opts := *m.VolumeOptions
		var err error
		if opts.Labels, err = f.values(opts.Labels); err != nil {
			return nil, fmt.Errorf("expanding mounts failed: expanding volume labels: %w", err)
		}
		if opts.DriverConfig != nil {
			driver := *opts.DriverConfig
			if driver.Options, err = f.values(driver.Options); err != nil {
				return nil, fmt.Errorf("expanding mounts failed: expanding volume driver config: %w", err)
			}
			opts.DriverConfig = &driver
		}
		m.VolumeOptions = &opts
	}
	return all, nil
}

func (f *facts) values(in map[string]string) (map[string]string, error) {
	out := maps.Clone(in)
	for k, v := range in {
		expanded, err := f.expand(v)
		if err != nil {
			return nil, fmt.Errorf("expanding map entry %q=%q: %w", k, v, err)
		}
		out[k] = expanded
	}
	return out, nil
}
