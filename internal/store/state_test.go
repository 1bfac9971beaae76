package store

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skep-dev/skep/internal/cluster"
)

// TestEntriesAppliedTogetherAreAsThoseAppliedInTurn also has one refused after it
// has changed something, and one that depends on an earlier one.
func TestEntriesAppliedTogetherAreAsThoseAppliedInTurn(t *testing.T) {
	create := func(id, name string) Change { return CreateService(service(id, name, "a:1")) }
	for name, entries := range map[string][]Entry{
		"none":    nil,
		"all fit": {{At: t0, Changes: []Change{create("s1", "a")}}, {At: t0.Add(1), Changes: []Change{create("s2", "b"), create("s3", "c")}}},
		"one is refused": {
			{At: t0, Changes: []Change{create("s1", "a")}},
			{At: t0.Add(1), Changes: []Change{create("s2", "b"), create("s3", "a")}},
			{At: t0.Add(2), Changes: []Change{create("s4", "b")}},
			{At: t0.Add(3), Changes: []Change{DeleteService(&cluster.Service{ID: "s1", Meta: cluster.Meta{Version: 1}})}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			together, inTurn := New(), New()
			before := together.View()
			got := together.ApplyAll(entries)
			var want []error
			for i, e := range entries {
				want = append(want, inTurn.Apply(uint64(i+1), e))
			}
			if len(got) != len(want) {
				t.Fatalf("%d answers to %d entries", len(got), len(want))
			}
			for i := range want {
				if (got[i] == nil) != (want[i] == nil) || got[i] != nil && got[i].Error() != want[i].Error() {
					t.Errorf("entry %d: %v, in turn %v", i, got[i], want[i])
				}
			}
			if d := cmp.Diff(inTurn.View().Services(), together.View().Services()); d != "" {
				t.Error(d)
			}
			if a, b := inTurn.View().Index(), together.View().Index(); a != b {
				t.Errorf("index %d, in turn %d", b, a)
			}
			if len(before.Services()) != 0 {
				t.Error("an older view changed")
			}
		})
	}
	if err := errors.Join(New().ApplyAll([]Entry{{At: t0}, {At: t0}})...); err != nil {
		t.Error(err)
	}
}

func TestAListIsMadeOnceWhileItsTableIsTheSame(t *testing.T) {
	l := newLog(t)
	l.do(CreateService(service("s1", "web", "a:1")))
	first := l.View().Services()
	l.do(CreateNode(&cluster.Node{ID: "n1"}))
	if second := l.View().Services(); &first[0] != &second[0] {
		t.Error("a write to another table made the list anew")
	}
	if extended := append(first, nil); &extended[0] == &first[0] {
		t.Error("a reader that appends to the list would write into it")
	}
	l.do(CreateService(service("s2", "api", "a:1")))
	if n := len(l.View().Services()); n != 2 || len(first) != 1 {
		t.Errorf("%d services, %d before", n, len(first))
	}
	l.do(DeleteService(l.View().Service("s1")))
	if n := len(l.View().Services()); n != 1 {
		t.Errorf("%d services after a removal", n)
	}
}
