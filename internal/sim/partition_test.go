package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func TestAGroupCutOffRunsOnUntilItHearsOtherwise(t *testing.T) {
	in(t, 5, func(s *Swarm, nodes []string) {
		spec := published("web", "ok", 10)
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: s.Network(swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "back"}})}}
		web := s.Create(spec)
		s.Until(2*time.Second, "10 of 10", func(v store.View) bool { return Settled(v, web, 10) })
		s.Fleet.Part(nodes[0], nodes[1])
		s.Stays(detection, "nobody has noticed", func(v store.View) bool { return Settled(v, web, 10) && len(v.TasksOf(web)) == 10 })
		s.Fleet.Down(nodes[0], nodes[1])
		elsewhere := func(v store.View) bool {
			by := ByNode(v, web)
			return Settled(v, web, 10) && by["node1"]+by["node2"] == 0
		}
		s.Until(2*time.Second, "10 of 10 elsewhere", elsewhere)
		if n := s.Fleet.Alive(web); n != 14 {
			t.Errorf("%d containers run; want the 4 that are cut off beside the 10", n)
		}
		before := ids(s.View(), web)
		s.Fleet.Heal(nodes[0], nodes[1])
		s.Until(3*time.Second, "told to stop", func(store.View) bool { return s.Fleet.Alive(web) == 10 })
		s.Stays(20*time.Second, "nothing moves back", elsewhere)
		if after := ids(s.View(), web); !slices.Equal(before, after) {
			t.Errorf("tasks %v became %v", before, after)
		}
		for _, task := range s.View().TasksOn(nodes[0]) {
			if task.Status.State != cluster.StateShutdown {
				t.Errorf("one that was replaced: %s", s.line(task))
			}
		}
	})
}

func TestACutThatIsShortChangesNothing(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		s.Until(2*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		before := ids(s.View(), web)
		s.Fleet.Part(nodes...)
		time.Sleep(detection / 2)
		s.Fleet.Heal(nodes...)
		s.Stays(20*time.Second, "6 of 6", func(v store.View) bool { return Settled(v, web, 6) })
		if after := ids(s.View(), web); !slices.Equal(before, after) {
			t.Errorf("tasks %v became %v", before, after)
		}
	})
}

// TestLateReportsOfTasksThatWereReplaced: what a node did while it was cut off is
// written down, and nobody acts on it a second time.
func TestLateReportsOfTasksThatWereReplaced(t *testing.T) {
	for part, want := range map[string]cluster.State{
		"slow 2s":   cluster.StateShutdown, // it comes to run when it is already replaced
		"crash 20s": cluster.StateFailed,   // it fails meanwhile
		"once 20s":  cluster.StateComplete,
	} {
		t.Run(part, func(t *testing.T) {
			in(t, 2, func(s *Swarm, nodes []string) {
				web := s.Create(Replicated("web", part, 1))
				s.Until(time.Second, "assigned", func(v store.View) bool {
					ts := v.TasksOf(web)
					return len(ts) == 1 && ts[0].Status.State >= cluster.StatePreparing
				})
				time.Sleep(time.Second)
				old := s.View().TasksOf(web)[0]
				s.Fleet.Cut(old.NodeID)
				s.Until(4*time.Second, "replaced", func(v store.View) bool {
					return v.Task(old.ID).Desired == cluster.StateShutdown && Settled(v, web, 1)
				})
				var said []cluster.State
				s.Check(func(v store.View) error {
					if st := v.Task(old.ID).Status.State; len(said) == 0 || said[len(said)-1] != st {
						said = append(said, st)
					}
					return Invariants(v)
				})
				if partOf(part).kind != "slow" {
					s.Until(20*time.Second, "ended unheard", func(store.View) bool { return s.Fleet.Alive(web) == 1 })
				}
				before := len(s.View().TasksOf(web))
				s.Fleet.Heal(old.NodeID)
				s.Until(3*time.Second, "its end is known", func(v store.View) bool { return v.Task(old.ID).Status.State == want })
				if part == "slow 2s" && !slices.Contains(said, cluster.StateRunning) {
					t.Errorf("it was heard to be %v; want running in between", said)
				}
				if ts := s.View().TasksOf(web); len(ts) != before {
					t.Errorf("%d tasks became %d\n%s", before, len(ts), s.Dump())
				}
			})
		})
	}
}

func TestAServiceRemovedWhileItsNodeIsCutOff(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 4))
		s.Until(2*time.Second, "4 of 4", func(v store.View) bool { return Settled(v, web, 4) })
		s.Fleet.Cut(nodes[0])
		s.Remove(web)
		s.Stays(10*time.Second, "what may be alive is remembered", func(v store.View) bool { return len(v.TasksOn(nodes[0])) == 2 })
		s.Fleet.Heal(nodes[0])
		s.Until(3*time.Second, "stopped and forgotten", func(v store.View) bool {
			return len(v.TasksOf(web)) == 0 && s.Fleet.Alive(web) == 0
		})
	})
}

// TestALeaderCutOffFromAllNodes: another leads, and hears of no node either; the
// nodes come back to it before, or after, it has taken them for down.
func TestALeaderCutOffFromAllNodes(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(map[bool]string{false: "briefly", true: "for long"}[down], func(t *testing.T) {
			in(t, 3, func(s *Swarm, nodes []string) {
				web, each := s.Create(published("web", "ok", 6)), s.Create(Global("each", "ok"))
				settled := func(v store.View) bool { return Settled(v, web, 6) && Settled(v, each, 3) }
				s.Until(2*time.Second, "all run", settled)
				before := ids(s.View(), web)
				s.Fleet.Part(nodes...)
				s.LoseLeader()
				s.Stays(10*time.Second, "left alone while nothing is known", settled)
				if down {
					s.Fleet.Down(nodes...)
					s.Until(time.Second, "wanted elsewhere", func(v store.View) bool { return Running(v, web) == 0 })
					s.Stays(10*time.Second, "there is nowhere", func(v store.View) bool { return Running(v, web) == 0 })
					if n := s.Fleet.Alive(web) + s.Fleet.Alive(each); n != 9 {
						t.Errorf("%d containers run on; want 9", n)
					}
				}
				s.Fleet.Heal(nodes...)
				s.Until(10*time.Second, "all run again", settled)
				s.Until(3*time.Second, "and nothing else", func(store.View) bool { return s.Fleet.Alive(web) == 6 && s.Fleet.Alive(each) == 3 })
				if after := ids(s.View(), web); !down && !slices.Equal(before, after) {
					t.Errorf("tasks %v became %v", before, after)
				}
			})
		})
	}
}

// TestAMisfitKeepsItsHostPortUntilItHasEnded: the port is not given to a task that
// waits for it before the container is gone; Fleet checks the containers.
func TestAMisfitKeepsItsHostPortUntilItHasEnded(t *testing.T) {
	in(t, 1, func(s *Swarm, nodes []string) {
		spec := func(name string) swarm.ServiceSpec {
			spec := Replicated(name, "ok", 1)
			spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{
				TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeHost,
			}}}
			return spec
		}
		picky := spec("picky")
		picky.TaskTemplate.ContainerSpec.Image = "stubborn"
		picky.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.disk!=slow"}}
		a := s.Create(picky)
		s.Until(2*time.Second, "1", func(v store.View) bool { return Settled(v, a, 1) })
		b := s.Create(spec("patient"))
		s.Fleet.Change(nodes[0], func(n *cluster.Node) { n.Spec.Labels = map[string]string{"disk": "slow"} })
		s.Stays(10*time.Second, "the other waits", func(v store.View) bool { return Running(v, b) == 0 })
		old := s.View().TasksOn(nodes[0])[0]
		s.Fleet.Fail(old)
		s.Until(2*time.Second, "the other runs", func(v store.View) bool { return Settled(v, b, 1) })
		if st := s.View().Task(old.ID).Status; st.State != cluster.StateRejected || st.ExitCode != 137 {
			t.Errorf("the first is shown as %s", s.line(s.View().Task(old.ID)))
		}
	})
}
