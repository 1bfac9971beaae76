package hosts

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestLosses: a worker's power cut, a drain, a restarted daemon, an update.
func TestLosses(t *testing.T) {
	f := newFleet(t, "manager1", "worker1", "worker2")
	f.swarm([]string{"manager1"}, []string{"worker1", "worker2"})
	f.do("manager1", "service create --detach --name web --replicas 6 --publish 8080:80 skep/whoami")
	f.running("manager1", "web", 6)

	t.Run("daemon", func(t *testing.T) { daemonRestarts(f) })
	t.Run("worker", func(t *testing.T) { workerLost(f) })
	t.Run("drain", func(t *testing.T) { drained(f) })
	t.Run("update", func(t *testing.T) { updated(t, f) })
}

// daemonRestarts kills the daemon of each node: its tasks never stop.
func daemonRestarts(f *fleet) {
	before := f.running("manager1", "web", 6)
	for _, m := range []string{"worker1", "manager1"} {
		pids := f.exec(nil, skepBin(), "machine", "ssh", m, "pgrep -x whoami | sort").out
		f.exec(nil, skepBin(), "machine", "ssh", m, "kill -9 $(cat /run/skep.pid)")
		f.eventually(m+"'s daemon is back and its node ready", func() string {
			ls := f.try("manager1", "node ls", "--format", "{{.Hostname}} {{.Status}}")
			if ps := f.try(m, "ps -q"); ps.exit == 0 && strings.Count(ls.out, "Ready") == 3 {
				return ""
			}
			return "nodes: " + ls.out + ls.err
		})
		after := f.running("manager1", "web", 6)
		if fmt.Sprint(ids(before)) != fmt.Sprint(ids(after)) {
			f.t.Errorf("after %s's daemon restarted the tasks are\n%v\nthey were\n%v", m, after, before)
		}
		if now := f.exec(nil, skepBin(), "machine", "ssh", m, "pgrep -x whoami | sort").out; now != pids {
			f.t.Errorf("%s: processes were %q and are %q", m, pids, now)
		}
	}
}

func ids(ts []task) map[string]string {
	m := map[string]string{}
	for _, x := range ts {
		m[x.id] = x.node
	}
	return m
}

// workerLost cuts a worker's power and brings it back.
func workerLost(f *fleet) {
	f.skep("machine", "kill", "worker2")
	f.eventually("its tasks run elsewhere", func() string {
		up := 0
		for _, x := range f.tasks("manager1", "web", "desired-state=running") {
			if x.node != "worker2" && strings.HasPrefix(x.state, "Running") {
				up++
			}
		}
		if up == 6 {
			return ""
		}
		return f.do("manager1", "service ps web") + f.do("manager1", "node ls")
	})
	f.skep("machine", "start", "worker2")
	f.eventually("it comes back as a ready node", func() string {
		ls := f.do("manager1", "node ls", "--format", "{{.Hostname}} {{.Status}}")
		if strings.Contains(ls, "worker2 Ready") {
			return ""
		}
		return ls
	})
	if n := perNode(f.running("manager1", "web", 6))["worker2"]; n != 0 {
		f.t.Errorf("%d tasks were moved back by themselves", n)
	}
	f.eventually("no old container runs on it", func() string { return f.do("worker2", "ps -q") })
}

func drained(f *fleet) {
	f.do("manager1", "node update --availability drain worker1")
	f.eventually("worker1 is empty", func() string {
		if n := perNode(f.running("manager1", "web", 6)); n["worker1"] != 0 {
			return fmt.Sprint(n)
		}
		return f.do("worker1", "ps -q")
	})
	f.do("manager1", "node update --availability active worker1")
}

// updated changes the service while it is asked without a pause: nothing is lost.
func updated(t *testing.T, f *fleet) {
	var asked, lost atomic.Int64
	var last atomic.Value
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			asked.Add(1)
			if _, err := f.ask("tcp", []string{"manager1", "worker1", "worker2"}[i%3], 8080); err != nil {
				lost.Add(1)
				last.Store(err.Error())
			}
			time.Sleep(time.Millisecond) // the rate of a client, not a wait
		}
	}()
	f.do("manager1", "service update --detach --update-parallelism 2 --update-monitor 1s --env-add COLOUR=blue web")
	f.eventually("the update completes", func() string {
		s := f.do("manager1", "service inspect --format {{.UpdateStatus.State}} web")
		if s == "completed" {
			return ""
		}
		return "state: " + s
	})
	f.running("manager1", "web", 6)
	f.do("manager1", "service rollback --detach web")
	f.eventually("the rollback completes", func() string {
		s := f.do("manager1", "service inspect --format {{.UpdateStatus.State}} web")
		if s == "rollback_completed" {
			return ""
		}
		return "state: " + s
	})
	close(stop)
	<-done
	if lost.Load() > 0 || asked.Load() < 100 {
		t.Errorf("%d of %d requests were lost; the last: %v", lost.Load(), asked.Load(), last.Load())
	}
}
