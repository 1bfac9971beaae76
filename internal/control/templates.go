package control

import (
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/moby/moby/api/types/swarm"
)

// templateFields are what a template may ask for; what is below a field with
// true is the user's own. The nodes fill them in.
var templateFields = map[string]bool{
	"Service": false, "Service.ID": false, "Service.Name": false, "Service.Labels": true,
	"Node": false, "Node.ID": false, "Node.Hostname": false,
	"Node.Platform": false, "Node.Platform.Architecture": false, "Node.Platform.OS": false,
	"Task": false, "Task.ID": false, "Task.Name": false, "Task.Slot": false,
}

// checkTemplates refuses templates that no node could fill in. They are read and
// not run: that is for the nodes, which bound what comes of it.
func checkTemplates(c *swarm.ContainerSpec) error {
	if err := checkExpansion(c.Hostname); err != nil {
		return invalid("expanding hostname failed: %v", err)
	}
	for _, e := range c.Env {
		if _, value, ok := strings.Cut(e, "="); ok {
			if err := checkExpansion(value); err != nil {
				return invalid("expanding env failed: expanding env %q: %v", e, err)
			}
		}
	}
	for _, m := range c.Mounts {
		for what, s := range map[string]string{"source": m.Source, "target": m.Target} {
			if err := checkExpansion(s); err != nil {
				return invalid("expanding mounts failed: expanding mount %s %q: %v", what, s, err)
			}
		}
	}
	return nil
}

func checkExpansion(s string) error {
	if !strings.Contains(s, "{{") {
		return nil
	}
	t, err := template.New("expansion").Funcs(template.FuncMap{"join": strings.Join}).Parse(s)
	if err != nil || t.Tree == nil {
		return err
	}
	return checkFields(t.Tree, t.Root)
}

// checkFields looks at the fields that are asked for where the dot is still the
// whole: inside with and range it may be anything.
func checkFields(t *parse.Tree, n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		return checkEach(t, n.Nodes)
	case *parse.ActionNode:
		return checkFields(t, n.Pipe)
	case *parse.IfNode:
		if err := checkEach(t, []parse.Node{n.Pipe, n.List}); err != nil || n.ElseList == nil {
			return err
		}
		return checkFields(t, n.ElseList)
	case *parse.WithNode:
		return checkFields(t, n.Pipe)
	case *parse.RangeNode:
		return checkFields(t, n.Pipe)
	case *parse.PipeNode:
		for _, cmd := range n.Cmds {
			if err := checkEach(t, cmd.Args); err != nil {
				return err
			}
		}
	case *parse.FieldNode:
		return checkField(t, n)
	}
	return nil
}

func checkEach(t *parse.Tree, nodes []parse.Node) error {
	for _, n := range nodes {
		if err := checkFields(t, n); err != nil {
			return err
		}
	}
	return nil
}

func checkField(t *parse.Tree, n *parse.FieldNode) error {
	for i := range n.Ident {
		free, known := templateFields[strings.Join(n.Ident[:i+1], ".")]
		if free {
			return nil
		}
		if !known {
			at, what := t.ErrorContext(n)
			return fmt.Errorf("template: %s: executing %q at <%s>: can't evaluate field %s in type *template.Context", at, t.Name, what, n.Ident[i])
		}
	}
	return nil
}
