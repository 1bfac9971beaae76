package sim

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// restarting starts one task of the part with the policy.
func restarting(s *Swarm, part string, p swarm.RestartPolicy) string {
	spec := Replicated("job", part, 1)
	spec.TaskTemplate.RestartPolicy = &p
	return s.Create(spec)
}

func ptr[T any](x T) *T { return &x }

func made(v store.View, id string) int { return len(v.TasksOf(id)) }

func TestRestartConditions(t *testing.T) {
	delay := ptr(time.Second)
	for _, c := range []struct {
		condition swarm.RestartPolicyCondition
		part      string
		again     bool
	}{
		{swarm.RestartPolicyConditionAny, "once 1s", true},
		{swarm.RestartPolicyConditionAny, "crash 1s", true},
		{swarm.RestartPolicyConditionOnFailure, "once 1s", false},
		{swarm.RestartPolicyConditionOnFailure, "crash 1s", true},
		{swarm.RestartPolicyConditionOnFailure, "reject", true},
		{swarm.RestartPolicyConditionNone, "once 1s", false},
		{swarm.RestartPolicyConditionNone, "crash 1s", false},
	} {
		t.Run(string(c.condition)+" "+c.part, func(t *testing.T) {
			in(t, 2, func(s *Swarm, nodes []string) {
				id := restarting(s, c.part, swarm.RestartPolicy{Condition: c.condition, Delay: delay})
				time.Sleep(20 * time.Second)
				if again := made(s.View(), id) > 1; again != c.again {
					t.Errorf("replaced: %t; want %t\n%s", again, c.again, s.Dump())
				}
				for _, task := range s.View().TasksOf(id) {
					held := task.Desired == cluster.StateReady && task.NotBefore.After(time.Now())
					if task.Status.State.Terminal() && task.Desired != cluster.StateShutdown && !held {
						t.Errorf("ended, and wanted %s; want shutdown", task.Desired)
					}
				}
			})
		})
	}
}

func TestAReplacementWaitsReadyThroughTheDelay(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		id := restarting(s, "crash 1s", swarm.RestartPolicy{Delay: ptr(10 * time.Second)})
		s.Until(5*time.Second, "replaced", func(v store.View) bool { return made(v, id) == 2 })
		s.Until(time.Second, "prepared", func(v store.View) bool {
			for _, task := range v.TasksOf(id) {
				if task.Desired == cluster.StateReady && task.Status.State == cluster.StateReady {
					return true
				}
			}
			return false
		})
		s.Stays(8*time.Second, "it waits", func(v store.View) bool { return Running(v, id) == 0 })
		s.Until(2*time.Second, "it runs", func(v store.View) bool { return Running(v, id) == 1 })
	})
}

func TestDelaysResumeAfterALeaderChange(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		id := restarting(s, "crash 1s", swarm.RestartPolicy{Delay: ptr(20 * time.Second)})
		s.Until(5*time.Second, "replaced", func(v store.View) bool { return made(v, id) == 2 })
		time.Sleep(5 * time.Second)
		s.LoseLeader()
		s.Stays(12*time.Second, "the delay goes on", func(v store.View) bool { return Running(v, id) == 0 })
		s.Until(4*time.Second, "it is not begun anew", func(v store.View) bool { return Running(v, id) == 1 })
	})
}

func TestAttemptsStopAndANewSpecResetsThem(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		id := restarting(s, "crash 1s", swarm.RestartPolicy{Delay: ptr(time.Second), MaxAttempts: ptr(uint64(2))})
		s.Until(20*time.Second, "three made", func(v store.View) bool { return made(v, id) == 3 })
		time.Sleep(5 * time.Second)
		s.LoseLeader()
		s.Stays(time.Minute, "no more", func(v store.View) bool { return made(v, id) == 3 && Settled(v, id, 0) })
		s.Update(id, image("crash 2s"))
		s.Until(20*time.Second, "the new spec has attempts of its own", func(v store.View) bool {
			n := 0
			for _, task := range v.TasksOf(id) {
				if task.SpecVersion == v.Service(id).SpecVersion {
					n++
				}
			}
			return n == 3
		})
	})
}

func TestAttemptsAgeOutOfTheWindow(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		id := restarting(s, "crash 10s", swarm.RestartPolicy{
			Delay: ptr(time.Second), MaxAttempts: ptr(uint64(2)), Window: ptr(15 * time.Second),
		})
		time.Sleep(3 * time.Minute)
		running := Running(s.View(), id)
		if wanted := Settled(s.View(), id, 0); running == 0 && wanted {
			t.Errorf("it was given up, though only one attempt fell into each window\n%s", s.Dump())
		}
		if n := made(s.View(), id); n > 3 {
			t.Errorf("%d tasks are kept; want at most one more than the attempts", n)
		}
	})
}

func TestScaleDownKeepsTheServiceSpread(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 9))
		s.Until(5*time.Second, "9", func(v store.View) bool { return Settled(v, web, 9) })
		s.Scale(web, 3)
		s.Until(5*time.Second, "3, the others gone from the list", func(v store.View) bool {
			return Settled(v, web, 3) && made(v, web) == 3
		})
		for name, n := range ByNode(s.View(), web) {
			if n != 1 {
				t.Errorf("%s has %d; want 1", name, n)
			}
		}
		s.Scale(web, 5)
		s.Until(5*time.Second, "5", func(v store.View) bool { return Settled(v, web, 5) })
		slots := map[int]bool{}
		for _, task := range s.View().TasksOf(web) {
			slots[task.Slot] = true
		}
		for slot := 1; slot <= 2; slot++ {
			if !slots[slot] {
				t.Errorf("slot %d is free and a higher one is taken: %v", slot, slots)
			}
		}
		s.Scale(web, 0)
		s.Until(5*time.Second, "none", func(v store.View) bool { return made(v, web) == 0 })
	})
}

func TestScaleDownTakesWhatDoesNotRunFirst(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		spec := Replicated("web", "ok", 2)
		spec.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: 1}
		web := s.Create(spec)
		s.Until(5*time.Second, "2", func(v store.View) bool { return Settled(v, web, 2) })
		s.Scale(web, 4)
		s.Until(5*time.Second, "2 wait", func(v store.View) bool { return made(v, web) == 4 })
		s.Scale(web, 2)
		s.Stays(5*time.Second, "the running ones stay", func(v store.View) bool { return Running(v, web) == 2 })
		if n := made(s.View(), web); n != 2 {
			t.Errorf("%d tasks are left; want 2", n)
		}
	})
}

func TestUnknownNodesKeepTheirTasks(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		glob := s.Create(Global("agent", "ok"))
		s.Until(5*time.Second, "all", func(v store.View) bool { return Settled(v, web, 6) && Settled(v, glob, 3) })
		before := append(ids(s.View(), web), ids(s.View(), glob)...)
		s.Store.ObserveNode(nodes[0], cluster.NodeStatus{State: swarm.NodeStateUnknown})
		s.Stays(time.Minute, "left alone", func(v store.View) bool {
			return len(ids(v, web))+len(ids(v, glob)) == len(before)
		})
		s.Scale(web, 9)
		s.Until(5*time.Second, "9, none new on it", func(v store.View) bool { return Settled(v, web, 9) })
		if n := ByNode(s.View(), web)["node1"]; n != 2 {
			t.Errorf("the unknown node has %d; want its 2", n)
		}
	})
}

func TestGlobalServicesFollowTheNodes(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		spec := Global("agent", "ok")
		spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.no!=agents"}}
		agent := s.Create(spec)
		s.Until(5*time.Second, "2", func(v store.View) bool { return Settled(v, agent, 2) })
		third := s.Fleet.Add("node3")
		s.Until(5*time.Second, "a new node gets its task", func(v store.View) bool { return Settled(v, agent, 3) })
		s.Fleet.Availability(third, swarm.NodeAvailabilityDrain)
		s.Until(5*time.Second, "a drained one loses it", func(v store.View) bool { return Settled(v, agent, 2) })
		s.Fleet.Availability(third, swarm.NodeAvailabilityActive)
		s.Until(5*time.Second, "and gets it again", func(v store.View) bool { return Settled(v, agent, 3) })
		s.Fleet.Kill(nodes[0])
		s.Until(5*time.Second, "a lost one loses it", func(v store.View) bool { return Settled(v, agent, 2) })
		s.Fleet.Heal(nodes[0])
		s.Until(5*time.Second, "and gets it again", func(v store.View) bool { return Settled(v, agent, 3) })
		s.Fleet.Change(nodes[1], func(n *cluster.Node) { n.Spec.Labels = map[string]string{"no": "agents"} })
		s.Until(5*time.Second, "one that no longer matches loses it", func(v store.View) bool { return Settled(v, agent, 2) })
		s.Fleet.Leave(third)
		s.Until(5*time.Second, "one that left is forgotten", func(v store.View) bool {
			return Settled(v, agent, 1) && len(v.TasksOn(third)) == 0
		})
		s.Until(2*time.Second, "one container runs", func(store.View) bool { return s.Fleet.Alive(agent) == 1 })
	})
}

func TestATaskThatNoLongerFitsItsNodeIsRejectedAndReplaced(t *testing.T) {
	for name, change := range map[string]func(*cluster.Node){
		"labels":    func(n *cluster.Node) { n.Spec.Labels = map[string]string{"disk": "slow"} },
		"resources": func(n *cluster.Node) { n.Description.Resources.MemoryBytes = 1 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 3, func(s *Swarm, nodes []string) {
				spec := published("web", "ok", 3)
				spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.disk!=slow"}}
				spec.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 30}}
				web := s.Create(spec)
				s.Until(5*time.Second, "3", func(v store.View) bool { return Settled(v, web, 3) })
				old := s.View().TasksOn(nodes[0])[0]
				s.Fleet.Change(nodes[0], change)
				s.Until(5*time.Second, "moved", func(v store.View) bool {
					return Settled(v, web, 3) && ByNode(v, web)["node1"] == 0
				})
				if st := s.View().Task(old.ID).Status; st.State != cluster.StateRejected || st.Err != "assigned node no longer meets constraints" {
					t.Errorf("the old one is %s %q", st.State, st.Err)
				}
				time.Sleep(2 * time.Second)
				if n := s.Fleet.Alive(web); n != 3 {
					t.Errorf("%d containers run; want 3", n)
				}
			})
		})
	}
}

func TestTheHistoryIsLimited(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		id := restarting(s, "crash 1s", swarm.RestartPolicy{Delay: ptr(time.Second)})
		time.Sleep(2 * time.Minute)
		if n := made(s.View(), id); n < 5 || n > 6 {
			t.Errorf("%d tasks of the slot are kept; want 5", n)
		}
		c := *s.View().Cluster()
		c.Spec = &swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: ptr(int64(2))}}
		s.Must(store.PutCluster(&c))
		s.Until(5*time.Second, "a lower limit works at once", func(v store.View) bool { return made(v, id) <= 2 })
		c = *s.View().Cluster()
		c.Spec = &swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: ptr(int64(-1))}}
		s.Must(store.PutCluster(&c))
		time.Sleep(time.Minute)
		if n := made(s.View(), id); n < 10 {
			t.Errorf("%d tasks are kept; want all", n)
		}
	})
}

func TestScaleDownForgetsThePlacesHistory(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		spec := Replicated("web", "crash 2s", 3)
		spec.TaskTemplate.RestartPolicy.Delay = ptr(time.Second)
		web := s.Create(spec)
		s.Until(30*time.Second, "each place has a history", func(v store.View) bool {
			for _, pl := range cluster.Places(v.TasksOf(web)) {
				if len(pl.Tasks) < 3 {
					return false
				}
			}
			return made(v, web) > 0
		})
		s.Fleet.Cut(nodes[0]) // what may be alive there is remembered
		s.Scale(web, 1)
		places := func(v store.View) int { return len(cluster.Places(v.TasksOf(web))) }
		s.Until(5*time.Second, "only what may be alive is left of the others", func(v store.View) bool {
			for _, task := range v.TasksOf(web) {
				if task.Desired == cluster.StateRemove && (task.NodeID != nodes[0] || task.Status.State.Terminal()) {
					return false
				}
			}
			return true
		})
		s.Fleet.Heal(nodes[0])
		s.Until(5*time.Second, "one place is left", func(v store.View) bool { return places(v) == 1 })
		s.Stays(10*time.Second, "and stays", func(v store.View) bool { return places(v) == 1 && made(v, web) > 1 })
	})
}

func TestARemovedServiceVanishesWithItsTasks(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "ok", 6))
		s.Until(5*time.Second, "6", func(v store.View) bool { return Settled(v, web, 6) })
		s.Remove(web)
		if s.View().Service(web) != nil {
			t.Error("the service is still listed")
		}
		s.Until(5*time.Second, "its tasks stop and go", func(v store.View) bool { return len(v.Tasks()) == 0 })
		if n := s.Fleet.Alive(web); n != 0 {
			t.Errorf("%d containers run", n)
		}
		again := s.Create(published("again", "ok", 1))
		s.Until(5*time.Second, "its port is free again", func(v store.View) bool { return Settled(v, again, 1) })
	})
}

func TestTasksOfANodeThatStaysDownAreOrphaned(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		web := s.Create(Replicated("web", "ok", 2))
		s.Until(5*time.Second, "2", func(v store.View) bool { return Settled(v, web, 2) })
		lost := s.View().TasksOn(nodes[0])[0]
		s.Fleet.Kill(nodes[0])
		time.Sleep(23 * time.Hour)
		if st := s.View().Task(lost.ID).Status.State; st != cluster.StateRunning {
			t.Errorf("after 23 h it is %s", st)
		}
		time.Sleep(2 * time.Hour)
		if st := s.View().Task(lost.ID).Status.State; st != cluster.StateOrphaned {
			t.Errorf("after 25 h it is %s; want orphaned", st)
		}
	})
}

func TestANetworkPendingDeleteGoesWithItsLastTask(t *testing.T) {
	in(t, 2, func(s *Swarm, nodes []string) {
		back := s.Network(swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "back"}})
		spec := Replicated("web", "ok", 2)
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: back}}
		web := s.Create(spec)
		s.Until(5*time.Second, "2", func(v store.View) bool { return Settled(v, web, 2) })
		n := *s.View().Network(back)
		n.PendingDelete = true
		s.Must(store.UpdateNetwork(&n))
		s.Stays(5*time.Second, "it waits", func(v store.View) bool { return v.Network(back) != nil })
		s.Remove(web)
		s.Until(5*time.Second, "it is gone", func(v store.View) bool { return v.Network(back) == nil })
	})
}

func TestHostPortsMakeReplicasWaitAndMove(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		spec := Replicated("web", "ok", 3)
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{
			{TargetPort: 80, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeHost},
		}}
		web := s.Create(spec)
		s.Until(5*time.Second, "3", func(v store.View) bool { return Settled(v, web, 3) })
		s.Update(web, image("ok v2"))
		s.Until(time.Minute, "a stop-first update frees the ports in turn", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && Settled(v, web, 3)
		})
		s.Scale(web, 4)
		s.Until(5*time.Second, "the fourth says why it waits", func(v store.View) bool {
			for _, task := range v.TasksOf(web) {
				if task.Status.Err == "no suitable node (host-mode port already in use on 3 nodes)" {
					return true
				}
			}
			return false
		})
		s.Fleet.Add("node4")
		s.Until(5*time.Second, "4", func(v store.View) bool { return Settled(v, web, 4) })
	})
}

func TestAFullSubnetIsExplainedAndWaitedFor(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		back := s.Network(swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "back"}, IPAMOptions: &swarm.IPAMOptions{
			Configs: []swarm.IPAMConfig{{Subnet: prefix("192.168.7.0/29")}},
		}})
		spec := Replicated("web", "ok", 6) // of 6 addresses the gateway and the VIP have one each
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: back}}
		web := s.Create(spec)
		s.Until(5*time.Second, "4 run, 2 say why they do not", func(v store.View) bool {
			waiting := 0
			for _, task := range v.TasksOf(web) {
				if task.Status.Err == "could not find an available IP: network back (192.168.7.0/29) has no free address left" {
					waiting++
				}
			}
			return waiting == 2 && Running(v, web) == 4
		})
		s.Scale(web, 3)
		s.Until(5*time.Second, "3", func(v store.View) bool { return Settled(v, web, 3) })
		s.Scale(web, 4)
		s.Until(5*time.Second, "4", func(v store.View) bool { return Settled(v, web, 4) })
	})
}
