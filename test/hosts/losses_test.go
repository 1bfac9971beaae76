package hosts

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestLosses: a worker's power cut, a drain, a restarted daemon, an update.
func TestLosses(t *testing.T) {
	f := newFleet(t, "manager1", "worker1", "worker2")
	f.swarm([]string{"manager1"}, []string{"worker1", "worker2"})
	f.do("manager1", "service create --detach --name web --replicas 6 --publish 8080:80 skep/whoami")
	f.running("manager1", "web", 6)

	t.Run("daemon", func(t *testing.T) { daemonRestarts(f.in(t)) })
	t.Run("worker", func(t *testing.T) { workerLost(f.in(t)) })
	t.Run("drain", func(t *testing.T) { drained(f.in(t)) })
	t.Run("update", func(t *testing.T) { updated(f.in(t)) })
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
func updated(f *fleet) {
	l := f.load8080("manager1", "worker1", "worker2")
	defer l.end()
	f.do("manager1", "service update --detach --update-parallelism 2 --update-monitor 1s --env-add COLOUR=blue web")
	f.updateState("web", "completed")
	f.running("manager1", "web", 6)
	f.do("manager1", "service rollback --detach web")
	f.updateState("web", "rollback_completed")
	f.running("manager1", "web", 6)
	f.do("manager1", "service scale --detach web=2")
	f.running("manager1", "web", 2)
	l.end()
	if l.lost > 0 || l.asked < 100 {
		f.t.Errorf("%d of %d requests were lost; the last: %v", l.lost, l.asked, l.last)
	}
}

// updateState waits for a service's update to come to a state.
func (f *fleet) updateState(service, want string) {
	f.t.Helper()
	f.eventually("the update is "+want, func() string {
		s := strings.TrimSpace(f.try("manager1", "service inspect --format {{if.UpdateStatus}}{{.UpdateStatus.State}}{{end}} "+service).out)
		if s == want {
			return ""
		}
		return "it is " + s
	})
}

// load is a client that asks port 8080 of one machine after another.
type load struct {
	end         func()
	asked, lost int
	last        error
}

// load8080 starts a client; its figures may be read after end.
func (f *fleet) load8080(machines ...string) *load {
	var urls []string
	for _, m := range machines {
		urls = append(urls, f.ip(m))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	l := &load{end: sync.OnceFunc(func() { close(stop); <-done })}
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			l.asked++
			if _, err := askAddr("tcp", urls[l.asked%len(urls)], 8080); err != nil {
				l.lost++
				l.last = err
			}
		}
	}()
	return l
}
