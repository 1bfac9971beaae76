package schedule

import (
	"maps"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

func TestSpreadPreferences(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes map[string]map[string]string // labels by node
		keys  []string
		tasks int
		want  map[string]int
	}{
		{"even over zones of unequal size",
			map[string]map[string]string{"a1": {"z": "a"}, "a2": {"z": "a"}, "a3": {"z": "a"}, "b1": {"z": "b"}},
			[]string{"node.labels.z"}, 6, map[string]int{"a1": 1, "a2": 1, "a3": 1, "b1": 3}},
		{"a missing label is a branch of its own",
			map[string]map[string]string{"a1": {"z": "a"}, "n1": {}, "n2": {}},
			[]string{"node.labels.z"}, 4, map[string]int{"a1": 2, "n1": 1, "n2": 1}},
		{"nested",
			map[string]map[string]string{
				"a1": {"z": "a", "r": "1"}, "a2": {"z": "a", "r": "2"}, "a3": {"z": "a", "r": "2"},
				"b1": {"z": "b", "r": "1"}, "b2": {"z": "b", "r": "2"},
			},
			[]string{"node.labels.z", "node.labels.r"}, 8, map[string]int{"a1": 2, "a2": 1, "a3": 1, "b1": 2, "b2": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newStage(t)
			for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
				g.node(id, func(n *cluster.Node) { n.Spec.Labels = c.nodes[id] })
			}
			g.service("web", spreadOver(c.keys...))
			g.pending("web", c.tasks)
			g.schedule()
			g.want("web", c.want)
		})
	}
}

func TestSpreadOverflowsWithinCapacity(t *testing.T) {
	g := newStage(t)
	g.node("a1", label("z", "a"))
	g.node("a2", label("z", "a"))
	g.node("b1", label("z", "b")) // room for 4
	g.service("web", spreadOver("node.labels.z"), reserve(1e9, 0))
	ids := g.pending("web", 13)
	g.schedule()
	g.want("web", map[string]int{"a1": 4, "a2": 4, "b1": 4})
	if got := g.errOf(ids[12]); got != "no suitable node (insufficient resources on 3 nodes)" {
		t.Errorf("%q", got)
	}
}

// TestNestedSpreadOverflowsAndEnds: a full branch's share goes to its siblings,
// at each level, and what no branch has room for waits.
func TestNestedSpreadOverflowsAndEnds(t *testing.T) {
	g := newStage(t)
	for id, labels := range map[string]map[string]string{
		"a1": {"z": "a", "r": "1"}, "a2": {"z": "a", "r": "2"}, "b1": {"z": "b", "r": "1"}, "b2": {"z": "b"},
	} {
		g.node(id, func(n *cluster.Node) {
			n.Spec.Labels = labels
			if id == "a1" {
				n.Description = &swarm.NodeDescription{Resources: swarm.Resources{NanoCPUs: 1e9, MemoryBytes: 1 << 30}}
			}
		})
	}
	g.service("web", spreadOver("node.labels.z", "node.labels.r"), reserve(1e9, 0))
	g.pending("web", 8)
	g.schedule()
	g.want("web", map[string]int{"a1": 1, "a2": 3, "b1": 2, "b2": 2})
	ids := g.pending("web", 7)
	g.schedule()
	g.want("web", map[string]int{"a1": 1, "a2": 4, "b1": 4, "b2": 4})
	waiting := 0
	for _, id := range ids {
		if g.errOf(id) == "no suitable node (insufficient resources on 4 nodes)" {
			waiting++
		}
	}
	if waiting != 2 {
		t.Errorf("%d wait and say why; want 2", waiting)
	}
}
