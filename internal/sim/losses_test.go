package sim

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// in runs a simulation in a bubble of fake time.
func in(t *testing.T, nodes int, play func(s *Swarm, nodes []string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := New(t, 1)
		play(s, s.Fleet.AddMany(nodes))
	})
}

func published(name, part string, replicas uint64) swarm.ServiceSpec {
	spec := Replicated(name, part, replicas)
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
	return spec
}

func TestAReplicatedServiceRuns(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 5))
		s.Until(2*time.Second, "5 of 5", func(v store.View) bool { return Settled(v, web, 5) })
		svc := s.View().Service(web)
		if len(svc.VIPs) != 1 || !svc.VIPs[0].Addr.IsValid() {
			t.Errorf("the service has VIPs %v; want one in ingress", svc.VIPs)
		}
		for name, n := range ByNode(s.View(), web) {
			if n > 2 {
				t.Errorf("%d of 5 tasks on %s", n, name)
			}
		}
		for _, task := range s.View().TasksOf(web) {
			if len(task.Networks) != 1 || !task.Networks[0].Addr.IsValid() {
				t.Errorf("task %d has %v; want an ingress address", task.Slot, task.Networks)
			}
		}
	})
}

func TestAContainerLostIsReplacedAfterTheDelay(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 3))
		s.Until(2*time.Second, "3 of 3", func(v store.View) bool { return Settled(v, web, 3) })
		victim := s.View().TasksOf(web)[0]
		s.Fleet.Fail(victim)
		s.Until(time.Second, "the replacement waits READY", func(v store.View) bool {
			ts := v.TasksOf(web)
			return len(ts) == 4 && Running(v, web) == 2
		})
		s.Stays(4*time.Second, "it waits through the delay", func(v store.View) bool { return Running(v, web) == 2 })
		s.Until(2*time.Second, "3 of 3 again", func(v store.View) bool { return Settled(v, web, 3) })
		old := s.View().Task(victim.ID)
		if old.Desired != cluster.StateShutdown || old.Status.State != cluster.StateFailed || old.Status.Err != "task: non-zero exit (137)" {
			t.Errorf("the lost one is shown as %s", s.line(old))
		}
	})
}

func TestANodeLostIsReplacedAtOnce(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		s.Until(2*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		lost := time.Now()
		s.Fleet.Kill(nodes[0])
		s.Until(2*time.Second, "6 of 6 elsewhere", func(v store.View) bool {
			return Settled(v, web, 6) && ByNode(v, web)["node1"] == 0
		})
		if d := time.Since(lost); d > 5*time.Second {
			t.Errorf("it took %v from the loss; want at most 5s", d)
		}
		s.Fleet.Heal(nodes[0])
		s.Stays(20*time.Second, "nothing moves back", func(v store.View) bool {
			return Settled(v, web, 6) && ByNode(v, web)["node1"] == 0
		})
		if n := s.Fleet.Alive(web); n != 6 {
			t.Errorf("%d containers run; want 6", n)
		}
	})
}

func TestALeaderLostLeavesTasksAlone(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		s.Until(2*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		before := ids(s.View(), web)
		s.LoseLeader()
		s.Stays(30*time.Second, "6 of 6 all the time", func(v store.View) bool { return Settled(v, web, 6) })
		if after := ids(s.View(), web); len(after) != len(before) {
			t.Errorf("tasks %v became %v", before, after)
		}
		s.Scale(web, 9)
		s.Until(2*time.Second, "the new leader acts", func(v store.View) bool { return Settled(v, web, 9) })
	})
}

func TestALeaderLostWithANode(t *testing.T) {
	in(t, 4, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 8))
		s.Until(2*time.Second, "8 of 8", func(v store.View) bool { return Settled(v, web, 8) })
		s.Fleet.do(func() { s.Fleet.machines[nodes[0]].off, s.Fleet.machines[nodes[0]].cut = true, true })
		s.LoseLeader()
		s.Fleet.missed(nodes[0])
		s.Until(3*time.Second, "8 of 8 elsewhere", func(v store.View) bool {
			return Settled(v, web, 8) && ByNode(v, web)["node1"] == 0
		})
	})
}

func ids(v store.View, service string) (out []string) {
	for _, t := range v.TasksOf(service) {
		out = append(out, t.ID)
	}
	return out
}

func TestADrainMovesTasks(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		s.Until(2*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		s.Fleet.Availability(nodes[1], swarm.NodeAvailabilityDrain)
		s.Until(5*time.Second, "moved", func(v store.View) bool {
			return Settled(v, web, 6) && ByNode(v, web)["node2"] == 0
		})
		s.Fleet.Availability(nodes[1], swarm.NodeAvailabilityActive)
		s.Stays(10*time.Second, "not moved back", func(v store.View) bool { return ByNode(v, web)["node2"] == 0 })
	})
}

func TestADrainStartsFirstWhereUpdatesDo(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		spec := published("web", "ok", 6)
		spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst}
		web := s.Create(spec)
		s.Until(2*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		s.Fleet.Availability(nodes[1], swarm.NodeAvailabilityDrain)
		serving := func(v store.View) (n int) {
			for _, t := range v.TasksOf(web) {
				if t.Desired == cluster.StateRunning && t.Status.Serving {
					n++
				}
			}
			return n
		}
		moved := func(v store.View) bool { return Settled(v, web, 6) && ByNode(v, web)["node2"] == 0 }
		s.Until(10*time.Second, "moved without a gap", func(v store.View) bool {
			if serving(v) < 6 {
				t.Fatalf("%d of 6 serve\n%s", serving(v), s.Dump())
			}
			return moved(v)
		})
	})
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
