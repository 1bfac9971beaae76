package sim

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func image(name string) func(*swarm.ServiceSpec) {
	return func(spec *swarm.ServiceSpec) { spec.TaskTemplate.ContainerSpec.Image = name }
}

func updateState(v store.View, id string) swarm.UpdateState {
	if u := v.Service(id).Update; u != nil {
		return u.State
	}
	return ""
}

// allOf reports whether every wanted task runs what the service's spec says now.
func allOf(v store.View, id string) bool {
	svc := v.Service(id)
	for _, t := range v.TasksOf(id) {
		if t.Desired <= cluster.StateRunning &&
			cluster.NewOutdated(svc, v).Has(t) {
			return false
		}
	}
	return true
}

// updated starts a service of n good tasks with the given configuration.
func updated(s *Swarm, n uint64, cfg *swarm.UpdateConfig) string {
	spec := published("web", "ok", n)
	spec.UpdateConfig = cfg
	id := s.Create(spec)
	s.Until(5*time.Second, "all run", func(v store.View) bool { return Settled(v, id, int(n)) })
	return id
}

func TestARollingUpdateReplacesAllOneAtATime(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 5, nil)
		s.Update(web, image("ok v2"))
		fewest := 5
		s.Until(60*time.Second, "completed", func(v store.View) bool {
			fewest = min(fewest, Running(v, web))
			return updateState(v, web) == swarm.UpdateStateCompleted
		})
		u := s.View().Service(web).Update
		if u.Message != "update completed" || u.CompletedAt == nil || u.CompletedAt.Sub(*u.StartedAt) < 5*time.Second {
			t.Errorf("the status is %+v", u)
		}
		if !allOf(s.View(), web) || !Settled(s.View(), web, 5) {
			t.Errorf("not all are new\n%s", s.Dump())
		}
		if fewest != 4 {
			t.Errorf("at the lowest %d of 5 ran; want 4", fewest)
		}
	})
}

func TestAnUpdateIsInParallelWithADelay(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 6, &swarm.UpdateConfig{Parallelism: 2, Delay: 10 * time.Second, Monitor: time.Second})
		start := time.Now()
		s.Update(web, image("ok v2"))
		fewest := 6
		s.Until(60*time.Second, "completed", func(v store.View) bool {
			fewest = min(fewest, Running(v, web))
			return updateState(v, web) == swarm.UpdateStateCompleted
		})
		if d := time.Since(start); d < 20*time.Second || d > 30*time.Second {
			t.Errorf("three batches with 10s between took %v", d)
		}
		if fewest != 4 {
			t.Errorf("at the lowest %d of 6 ran; want 4", fewest)
		}
	})
}

func TestAnUpdateThatStartsFirstNeverServesLess(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 4, &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst, Monitor: time.Second})
		s.Update(web, image("ok v2"))
		s.Until(60*time.Second, "completed", func(v store.View) bool {
			if n := Running(v, web); n < 4 {
				t.Fatalf("%d of 4 serve\n%s", n, s.Dump())
			}
			return updateState(v, web) == swarm.UpdateStateCompleted && Settled(v, web, 4)
		})
	})
}

func TestAnUpdatePausesAtTheFirstFailureAndStaysPaused(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 3, nil)
		s.Update(web, image("reject"))
		s.Until(10*time.Second, "paused", func(v store.View) bool { return updateState(v, web) == swarm.UpdateStatePaused })
		u := s.View().Service(web).Update
		id, ok := strings.CutPrefix(u.Message, "update paused due to failure or early termination of task ")
		if !ok || s.View().Task(id) == nil || s.View().Task(id).Status.State != cluster.StateRejected {
			t.Errorf("the message is %q", u.Message)
		}
		s.Stays(time.Minute, "paused, two old ones running", func(v store.View) bool {
			old := 0
			for _, task := range v.TasksOf(web) {
				if task.SpecVersion != v.Service(web).SpecVersion && task.Desired == cluster.StateRunning {
					old++
				}
			}
			return updateState(v, web) == swarm.UpdateStatePaused && old == 2
		})
		s.Update(web, image("ok v3"))
		s.Until(60*time.Second, "the next update finishes", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && allOf(v, web) && Settled(v, web, 3)
		})
	})
}

func TestAnUpdateContinuesThroughFailures(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 3, &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionContinue, Monitor: 2 * time.Second})
		s.Update(web, image("crash 1s"))
		s.Until(30*time.Second, "completed", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && allOf(v, web)
		})
	})
}

func TestAFailedUpdateRollsBack(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 5, &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback, MaxFailureRatio: 0.3})
		s.Update(web, image("crash 1s"))
		s.Until(60*time.Second, "rolling back", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateRollbackStarted
		})
		u := s.View().Service(web).Update
		if !strings.HasPrefix(u.Message, "update rolled back due to failure or early termination of task ") {
			t.Errorf("the message is %q", u.Message)
		}
		failed := map[int]bool{}
		for _, task := range s.View().TasksOf(web) {
			if task.Status.State == cluster.StateFailed {
				failed[task.Slot] = true
			}
		}
		if len(failed) != 2 { // 1 of 5 is not more than 0.3, 2 of 5 is
			t.Errorf("%d places failed before the rollback; want 2", len(failed))
		}
		s.Until(60*time.Second, "rolled back", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateRollbackCompleted && Settled(v, web, 5)
		})
		svc := s.View().Service(web)
		if svc.Spec.TaskTemplate.ContainerSpec.Image != "ok" || svc.Previous != nil || svc.Update.Message != "rollback completed" {
			t.Errorf("rolled back to %q, previous %v, %q", svc.Spec.TaskTemplate.ContainerSpec.Image, svc.Previous, svc.Update.Message)
		}
	})
}

func TestARollbackThatFailsIsPausedAndNotRolledBack(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		spec := published("web", "crash 1s", 3)
		spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback}
		spec.RollbackConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionRollback}
		web := s.Create(spec)
		time.Sleep(2 * time.Second)
		s.Update(web, image("crash 2s"))
		s.Until(60*time.Second, "the rollback is paused", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateRollbackPaused
		})
		if m := s.View().Service(web).Update.Message; !strings.HasPrefix(m, "rollback paused due to failure or early termination of task ") {
			t.Errorf("the message is %q", m)
		}
		s.Stays(time.Minute, "paused", func(v store.View) bool { return updateState(v, web) == swarm.UpdateStateRollbackPaused })
	})
}

func TestAManualRollback(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 3, nil)
		s.Update(web, image("ok v2"))
		s.Until(60*time.Second, "updated", func(v store.View) bool { return updateState(v, web) == swarm.UpdateStateCompleted })
		s.Rollback(web)
		s.Until(60*time.Second, "rolled back", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateRollbackCompleted && Settled(v, web, 3) && allOf(v, web)
		})
	})
}

func TestAConstraintOnlyChangeKeepsTasksThatFit(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 6, nil)
		before := map[string]bool{}
		for _, task := range s.View().TasksOf(web) {
			if task.NodeID != nodes[0] {
				before[task.ID] = true
			}
		}
		s.Update(web, func(spec *swarm.ServiceSpec) {
			spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname!=node1"}}
		})
		s.Until(30*time.Second, "off node1", func(v store.View) bool {
			return Settled(v, web, 6) && ByNode(v, web)["node1"] == 0 && updateState(v, web) == swarm.UpdateStateCompleted
		})
		for id := range before {
			if task := s.View().Task(id); task == nil || task.Desired != cluster.StateRunning {
				t.Errorf("task %s fitted and was replaced", id)
			}
		}
	})
}

func TestANewerSpecCancelsTheRunningUpdate(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 5, &swarm.UpdateConfig{Parallelism: 1, Delay: 20 * time.Second})
		s.Update(web, image("ok v2"))
		time.Sleep(5 * time.Second)
		s.Update(web, func(spec *swarm.ServiceSpec) {
			image("ok v3")(spec)
			spec.UpdateConfig.Delay = 0
		})
		s.Until(30*time.Second, "the newer one completes", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && allOf(v, web) && Settled(v, web, 5)
		})
	})
}

func TestTheSameSpecAgainIsNoUpdate(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 3, nil)
		before := ids(s.View(), web)
		s.Update(web, func(spec *swarm.ServiceSpec) { spec.Labels = map[string]string{"a": "b"} })
		s.Stays(20*time.Second, "no update", func(v store.View) bool {
			return updateState(v, web) == "" && len(v.TasksOf(web)) == len(before)
		})
	})
}

func TestAStuckOldTaskTimesOut(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := s.Create(published("web", "stubborn", 1))
		s.Until(5*time.Second, "1", func(v store.View) bool { return Settled(v, web, 1) })
		s.Update(web, image("ok v2"))
		s.Until(time.Second, "the old one is told to stop", func(v store.View) bool { return Running(v, web) == 0 })
		s.Stays(58*time.Second, "the new one waits", func(v store.View) bool { return Running(v, web) == 0 })
		s.Until(10*time.Second, "it starts beside the old one", func(v store.View) bool { return Running(v, web) == 1 })
	})
}

func TestAnUpdateDoesNotWaitForEverOnATaskThatNeverRuns(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 3, nil)
		s.Update(web, image("never"))
		s.Stays(9*time.Minute, "updating", func(v store.View) bool { return updateState(v, web) != swarm.UpdateStatePaused })
		s.Until(2*time.Minute, "paused", func(v store.View) bool { return updateState(v, web) == swarm.UpdateStatePaused })
	})
}

func TestAnUpdateGoesOnUnderTheNextLeader(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		web := updated(s, 6, &swarm.UpdateConfig{Parallelism: 1, Delay: 3 * time.Second, Monitor: time.Second})
		s.Update(web, image("ok v2"))
		for range 4 {
			time.Sleep(4 * time.Second)
			s.LoseLeader()
		}
		s.Until(time.Minute, "completed", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && allOf(v, web) && Settled(v, web, 6)
		})
	})
}

func TestAGlobalServiceIsUpdated(t *testing.T) {
	in(t, 4, func(s *Swarm, nodes []string) {
		agent := s.Create(Global("agent", "ok"))
		s.Until(5*time.Second, "on all", func(v store.View) bool { return Settled(v, agent, 4) })
		s.Fleet.Availability(nodes[3], swarm.NodeAvailabilityPause)
		s.Update(agent, image("ok v2"))
		s.Until(time.Minute, "completed", func(v store.View) bool {
			return updateState(v, agent) == swarm.UpdateStateCompleted && Settled(v, agent, 4)
		})
		for _, task := range s.View().TasksOf(agent) {
			old := task.SpecVersion != s.View().Service(agent).SpecVersion
			if task.Desired == cluster.StateRunning && old != (task.NodeID == nodes[3]) {
				t.Errorf("%s: pause freezes its node alone", s.line(task))
			}
		}
	})
}

func TestPlacesThatAreFinishedAreUpdated(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		spec := Replicated("once", "once 1s", 4)
		spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}
		spec.UpdateConfig = &swarm.UpdateConfig{FailureAction: swarm.UpdateFailureActionContinue}
		id := s.Create(spec)
		s.Until(5*time.Second, "all ended", func(v store.View) bool { return made(v, id) == 4 && Settled(v, id, 0) })
		s.Stays(20*time.Second, "none again", func(v store.View) bool { return made(v, id) == 4 })
		s.Update(id, image("once 2s"))
		s.Until(2*time.Second, "all run again, at once", func(v store.View) bool { return Running(v, id) == 4 })
		s.Until(time.Minute, "completed", func(v store.View) bool {
			return updateState(v, id) == swarm.UpdateStateCompleted && Settled(v, id, 0)
		})
	})
}

func TestFailuresAreSeenWithoutAHistory(t *testing.T) {
	in(t, 3, func(s *Swarm, nodes []string) {
		c := *s.View().Cluster()
		c.Spec = &swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: ptr(int64(0))}}
		s.Must(store.PutCluster(&c))
		web := updated(s, 3, nil)
		s.Update(web, image("reject"))
		s.Until(10*time.Second, "paused", func(v store.View) bool { return updateState(v, web) == swarm.UpdateStatePaused })
		s.Update(web, image("ok v3"))
		s.Until(time.Minute, "completed, and no history left", func(v store.View) bool {
			return updateState(v, web) == swarm.UpdateStateCompleted && made(v, web) == 3
		})
	})
}
