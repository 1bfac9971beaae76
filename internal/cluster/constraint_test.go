package cluster

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func TestConstraints(t *testing.T) {
	n := &Node{
		ID: "abc", Role: swarm.NodeRoleManager,
		Spec:   &swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{"Zone": "East"}}},
		Status: NodeStatus{Addr: "10.1.2.3"},
		Description: &swarm.NodeDescription{
			Hostname: "host1", Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
			Engine: swarm.EngineDescription{Labels: map[string]string{"disk": "ssd"}},
		},
	}
	for expr, want := range map[string]bool{
		"node.id==abc":                true,
		"node.id != abc":              false,
		"NODE.ID==ABC":                true,
		"node.hostname==HOST1":        true,
		"node.role==manager":          true,
		"node.role!=worker":           true,
		"node.platform.os==linux":     true,
		"node.platform.arch==x86_64":  true,
		"node.labels.Zone==east":      true,
		"node.labels.zone==east":      false, // a label's name is as it is written
		"node.labels.nope==x":         false,
		"node.labels.nope!=x":         true, // a missing value is ""
		"engine.labels.disk==ssd":     true,
		"engine.labels.disk!=ssd":     false,
		"node.ip==10.1.2.3":           true,
		"node.ip==10.1.0.0/16":        true,
		"node.ip!=10.1.0.0/16":        false,
		"node.ip==10.2.0.0/16":        false,
		"node.ip==bogus":              false,
		"node.ip!=bogus":              false,
		"node.unheardof==x":           false,
		"node.unheardof!=x":           false,
		"node.labels.Zone == East ":   true,
		"node.labels.Zone != West":    true,
		"node.platform.os!=windows":   true,
		"engine.labels.missing==none": false,
	} {
		cs, err := ParseConstraints([]string{expr})
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := MatchAll(cs, n); got != want {
			t.Errorf("%s: %t; want %t", expr, got, want)
		}
	}
}

func TestConstraintsThatCannotBeRead(t *testing.T) {
	for expr, want := range map[string]string{
		"bogus":            "constraint expected one operator from ==, !=",
		"":                 "constraint expected one operator from ==, !=",
		"==x":              "key '' is invalid",
		"node.id==":        "value '' is invalid",
		"1node==x":         "key '1node' is invalid",
		"node.labels.a==>": "value '>' is invalid",
		"node.labels.a=x":  "constraint expected one operator from ==, !=",
	} {
		if _, err := ParseConstraints([]string{expr}); err == nil || err.Error() != want {
			t.Errorf("%q: %v; want %s", expr, err, want)
		}
	}
}

func FuzzParseConstraints(f *testing.F) {
	for _, s := range []string{"node.id==a", "node.ip!=10.0.0.0/8", "a=!=b", "\x00==\xff"} {
		f.Add(s)
	}
	n := &Node{ID: "x"}
	f.Fuzz(func(t *testing.T, s string) {
		cs, err := ParseConstraints([]string{s})
		if err == nil && len(cs) != 1 {
			t.Fatalf("%q gives %d constraints", s, len(cs))
		}
		MatchAll(cs, n) // must not panic on a node that says nothing
	})
}
