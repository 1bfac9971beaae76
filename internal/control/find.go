package control

import (
	"fmt"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// find returns the object that ref names: by its id, else by its name, else by
// a prefix of its id that no other has.
func find[T any](noun, ref string, all []*T, id func(*T) string, name func(*T) string) (*T, error) {
	var named, prefixed []*T
	for _, o := range all {
		switch {
		case ref == "":
		case id(o) == ref:
			return o, nil
		case name(o) == ref:
			named = append(named, o)
		case strings.HasPrefix(id(o), ref):
			prefixed = append(prefixed, o)
		}
	}
	found := named
	if len(found) == 0 {
		found = prefixed
	}
	switch len(found) {
	case 0:
		return nil, cluster.NotFoundf("%s %s not found", noun, ref)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s %s is ambiguous (%d matches found)", noun, ref, len(found))
}

func findNode(v store.View, ref string) (*cluster.Node, error) {
	if n := v.Node(ref); n != nil {
		return n, nil
	}
	return find("node", ref, v.Nodes(), func(n *cluster.Node) string { return n.ID }, nodeName(ref))
}

// nodeName returns the name of a node to compare ref with: the one it was given
// or its host's.
func nodeName(ref string) func(*cluster.Node) string {
	return func(n *cluster.Node) string {
		if n.Spec != nil && n.Spec.Name == ref {
			return ref
		}
		return hostname(n)
	}
}

func hostname(n *cluster.Node) string {
	if n.Description == nil {
		return ""
	}
	return n.Description.Hostname
}

func findService(v store.View, ref string) (*cluster.Service, error) {
	if s := v.Service(ref); s != nil {
		return s, nil
	}
	if s := v.ServiceByName(ref); s != nil {
		return s, nil
	}
	return find("service", ref, v.Services(), func(s *cluster.Service) string { return s.ID },
		func(s *cluster.Service) string { return s.Spec.Name })
}

func findTask(v store.View, ref string) (*cluster.Task, error) {
	if t := v.Task(ref); t != nil {
		return t, nil
	}
	return find("task", ref, v.Tasks(), func(t *cluster.Task) string { return t.ID },
		func(t *cluster.Task) string { return taskName(v, t) })
}

func taskName(v store.View, t *cluster.Task) string {
	s := v.Service(t.ServiceID)
	if s == nil {
		return ""
	}
	return t.Name(s.Spec.Name)
}

func findNetwork(v store.View, ref string) (*cluster.Network, error) {
	var all []*cluster.Network
	for _, n := range v.Networks() {
		if !n.PendingDelete {
			all = append(all, n)
		}
	}
	return find("network", ref, all, func(n *cluster.Network) string { return n.ID },
		func(n *cluster.Network) string { return n.Spec.Name })
}

func findSecret(v store.View, ref string) (*cluster.Secret, error) {
	return find("secret", ref, v.Secrets(), func(s *cluster.Secret) string { return s.ID },
		func(s *cluster.Secret) string { return s.Spec.Name })
}

func findConfig(v store.View, ref string) (*cluster.Config, error) {
	return find("config", ref, v.Configs(), func(c *cluster.Config) string { return c.ID },
		func(c *cluster.Config) string { return c.Spec.Name })
}
