package sim

import (
	"flag"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/store"
)

var thousands = flag.Int("thousands", 2, "how many thousand tasks the scale test runs, on a tenth as many nodes")

// TestThousandsOfTasks takes many tasks with addresses to RUNNING, within the
// budget of log that the house sets for a task.
func TestThousandsOfTasks(t *testing.T) {
	in(t, 0, func(s *Swarm, _ []string) {
		s.Check(nil) // it looks at everything after each entry; once at the end is enough here
		s.Fleet.AddMany(100 * *thousands)
		var ids []string
		before, start := s.LogBytes(), time.Now()
		for range *thousands {
			name := s.NewID()
			back := s.Network(swarm.NetworkSpec{Annotations: swarm.Annotations{Name: name}, IPAMOptions: &swarm.IPAMOptions{
				Configs: []swarm.IPAMConfig{{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(4 * len(ids)), 0}), 22)}},
			}})
			spec := Replicated(name, "ok", 1000)
			spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: back}}
			ids = append(ids, s.Create(spec))
		}
		s.Until(time.Minute, "all run", func(v store.View) bool {
			for _, id := range ids {
				if Running(v, id) < 1000 {
					return false
				}
			}
			return true
		})
		each := (s.LogBytes() - before) / (1000 * *thousands)
		t.Logf("%d bytes of log a task, %v from the first create to the last task running", each, time.Since(start))
		if each > 400 {
			t.Errorf("a task takes %d bytes of log; the budget is 400", each)
		}
		if err := Invariants(s.View()); err != nil {
			t.Error(err)
		}
		for name, n := range load(s.View()) {
			if n != 10 {
				t.Errorf("%s has %d tasks; want 10", name, n)
			}
		}
	})
}

// load counts the tasks on each node's host name.
func load(v store.View) map[string]int {
	out := map[string]int{}
	for _, n := range v.Nodes() {
		out[n.Description.Hostname] = len(v.TasksOn(n.ID))
	}
	return out
}
