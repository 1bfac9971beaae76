package hosts

import (
	"bufio"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// What images/build.sh makes of two Debian releases.
const (
	redisOld = "redis:7.0"
	redisNew = "redis:8.0"
)

// TestSecondWalkthrough is a service's life in the hands of its operator: a new
// version, back, and back again; ports, size, nodes in and out; where tasks go.
func TestSecondWalkthrough(t *testing.T) {
	both(t, func(t *testing.T, cli string) {
		f := newFleet(t, "manager1", "worker1", "worker2")
		f.cli = cli
		nodes := []string{"manager1", "worker1", "worker2"}
		f.swarm(nodes[:1], nodes[1:])
		f.load("redis-7.0", nodes...)
		f.load("redis-8.0", nodes...)
		delay := 2 * time.Second
		if cli == "skep" { // as it was typed in the first tutorials; once is enough
			delay = 10 * time.Second
		}
		f.walkUpdate(delay)
		f.walkRollback()
		f.walkPorts(nodes)
		f.walkDrain()
		f.walkPlacement(nodes)
	})
}

// walkUpdate brings redis to its new version, one task at a time.
func (f *fleet) walkUpdate(delay time.Duration) {
	f.do("manager1", fmt.Sprintf("service create --detach --name redis --replicas 3 --update-delay %v --update-monitor 1s --rollback-monitor 1s %s", delay, redisOld))
	if n := perNode(f.running("manager1", "redis", 3)); len(n) != 3 {
		f.t.Errorf("three tasks on %v", n)
	}
	f.runs(redisOld, 3)
	if out := f.do("manager1", "service inspect --pretty redis"); !strings.Contains(out, fmt.Sprintf(" Delay:\t\t%v\n", delay)) {
		f.t.Errorf("inspect --pretty does not show the delay of %v:\n%s", delay, out)
	}
	f.do("manager1", "service update --detach --image "+redisNew+" redis")
	f.updateState("redis", "completed")
	f.runs(redisNew, 3)
	f.oneByOne(delay)
	f.history(redisOld, redisNew)
}

// runs waits until n tasks are up, and asks each which redis it is.
func (f *fleet) runs(image string, n int) {
	f.t.Helper()
	version := strings.TrimPrefix(image, "redis:")
	for _, x := range f.running("manager1", "redis", n) {
		f.eventually(x.name+" answers", func() string {
			r := f.try(x.node, "exec "+f.container(x)+" redis-cli INFO server")
			if strings.Contains(r.out, "redis_version:"+version+".") {
				return ""
			}
			return fmt.Sprintf("it is not %s: %s%s", image, r.out, r.err)
		})
	}
	if out := f.do("manager1", "service ls --format {{.Name}}|{{.Replicas}}|{{.Image}}"); !strings.Contains(out, fmt.Sprintf("redis|%d/%d|%s", n, n, image)) {
		f.t.Errorf("service ls says %s", out)
	}
}

// oneByOne checks that the running tasks came up at least a delay apart.
func (f *fleet) oneByOne(delay time.Duration) {
	f.t.Helper()
	var at []time.Time
	for _, x := range f.running("manager1", "redis", 3) {
		when, err := time.Parse(time.RFC3339Nano, f.do("manager1", "inspect --type task --format {{.CreatedAt}} "+x.id))
		if err != nil {
			// The command line prints a time as Go does.
			when, err = time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", f.do("manager1", "inspect --type task --format {{.CreatedAt}} "+x.id))
		}
		if err != nil {
			f.t.Fatal(err)
		}
		at = append(at, when)
	}
	for i := range at {
		for j := range i {
			if d := at[i].Sub(at[j]).Abs(); d < delay {
				f.t.Errorf("two new tasks were made %v apart; the delay is %v", d, delay)
			}
		}
	}
}

// history checks that every slot shows its new task above its old one.
func (f *fleet) history(older, newer string) {
	f.t.Helper()
	out := f.do("manager1", "service ps redis")
	for _, slot := range []string{"redis.1", "redis.2", "redis.3"} {
		rows := regexp.MustCompile(` ` + slot + ` +` + newer + ` .* Running +Running .*\n\S+ +\\_ ` + slot + ` +` + older + ` .* Shutdown +Shutdown `)
		if !rows.MatchString(out) {
			f.t.Errorf("service ps shows no %s of %s below one of %s:\n%s", slot, older, newer, out)
		}
	}
}

// walkRollback goes back to the version before, twice: the second time the
// version before is the one that the first left.
func (f *fleet) walkRollback() {
	f.do("manager1", "service rollback --detach redis")
	f.updateState("redis", "rollback_completed")
	f.runs(redisOld, 3)
	// The second by the older spelling, waited for and shown.
	r := f.try("manager1", "service update --rollback redis")
	if r.exit != 0 || !strings.Contains(r.out, "rollback: manually requested rollback") ||
		!strings.Contains(r.out, "rolling back update: 3 out of 3 tasks") || !strings.Contains(r.out, "converged") {
		f.t.Errorf("service update --rollback, exit %d:\n%s%s", r.exit, r.out, r.err)
	}
	f.updateState("redis", "rollback_completed")
	f.runs(redisNew, 3)
	f.refused(1, "other flags may not be combined with --rollback", "manager1", "service update --rollback --image "+redisOld+" redis")
	f.do("manager1", "service create --detach --name never "+redisOld)
	f.refused(1, "does not have a previous spec", "manager1", "service rollback never")
	f.do("manager1", "service rm never")
}

// walkPorts opens a port on a running service and closes it again.
func (f *fleet) walkPorts(nodes []string) {
	f.do("manager1", "service update --detach --update-delay 0s --publish-add 6379:6379 redis")
	f.updateState("redis", "completed")
	f.runs(redisNew, 3)
	for _, n := range nodes {
		f.eventually("redis on "+n, func() string { return f.pings(n, 6379) })
	}
	if out := f.do("manager1", "service ls"); !strings.Contains(out, "*:6379->6379/tcp") {
		f.t.Errorf("service ls shows no port:\n%s", out)
	}
	f.refused(1, "port '6379' is already in use by service 'redis'", "manager1", "service create --detach --name thief -p 6379:1 "+redisOld)
	f.do("manager1", "service update --detach --publish-rm 6379 redis")
	f.updateState("redis", "completed")
	f.runs(redisNew, 3)
	for _, n := range nodes {
		f.eventually("the port is closed on "+n, func() string {
			if f.pings(n, 6379) == "" {
				return "redis answers"
			}
			return ""
		})
	}
	if out := f.do("manager1", "service ls"); strings.Contains(out, "6379") {
		f.t.Errorf("service ls still shows the port:\n%s", out)
	}
}

// pings asks redis on a machine's port for a sign of life; "" if it gives one.
func (f *fleet) pings(machine string, port int) string {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", f.ip(machine), port), 2*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err.Error()
	}
	if _, err := fmt.Fprint(c, "PING\r\n"); err != nil {
		return err.Error()
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "+PONG\r\n" {
		return fmt.Sprintf("%q %v", line, err)
	}
	return ""
}

// walkDrain changes the size, empties a node, takes it back, and spreads the
// tasks over it again by force.
func (f *fleet) walkDrain() {
	if out := f.do("manager1", "service scale redis=6"); !strings.Contains(out, "redis scaled to 6") || !strings.Contains(out, "converged") {
		f.t.Errorf("service scale said:\n%s", out)
	}
	if n := perNode(f.running("manager1", "redis", 6)); n["manager1"] != 2 || n["worker1"] != 2 || n["worker2"] != 2 {
		f.t.Errorf("six tasks on %v", n)
	}
	f.do("manager1", "service scale --detach redis=4")
	f.running("manager1", "redis", 4)
	f.do("manager1", "node update --availability drain worker1")
	f.eventually("worker1 is empty", func() string {
		if n := perNode(f.running("manager1", "redis", 4)); n["worker1"] != 0 {
			return fmt.Sprint(n)
		}
		return f.do("worker1", "ps -q")
	})
	if out := f.do("manager1", "node ls --format {{.Hostname}}|{{.Availability}}"); !strings.Contains(out, "worker1|Drain") {
		f.t.Errorf("node ls says %s", out)
	}
	f.do("manager1", "node update --availability active worker1")
	if n := perNode(f.running("manager1", "redis", 4)); n["worker1"] != 0 {
		f.t.Errorf("tasks moved back by themselves: %v", n)
	}
	f.do("manager1", "service update --detach --force redis")
	f.updateState("redis", "completed")
	if n := perNode(f.running("manager1", "redis", 4)); len(n) != 3 {
		f.t.Errorf("after update --force four tasks are on %v", n)
	}
	f.runs(redisNew, 4)
	f.do("manager1", "service rm redis")
}

// walkPlacement says where tasks go, and opens ports on their own nodes alone.
func (f *fleet) walkPlacement(nodes []string) {
	f.do("manager1", "service create --detach --name top --replicas 2 --constraint node.role==manager "+redisNew)
	if n := perNode(f.running("manager1", "top", 2)); n["manager1"] != 2 {
		f.t.Errorf("the manager's tasks are on %v", n)
	}
	f.do("manager1", "service create --detach --name everywhere --mode global --publish mode=host,published=6380,target=6379 "+redisOld)
	if n := perNode(f.running("manager1", "everywhere", 3)); len(n) != 3 {
		f.t.Errorf("a global service's tasks are on %v", n)
	}
	for _, n := range nodes {
		f.eventually("its port on "+n, func() string { return f.pings(n, 6380) })
	}
	f.do("manager1", "node update --availability drain worker2")
	f.running("manager1", "everywhere", 2)
	f.eventually("the port is closed on worker2", func() string {
		if f.pings("worker2", 6380) == "" {
			return "it answers"
		}
		return ""
	})
	f.do("manager1", "node update --availability active worker2")
	f.running("manager1", "everywhere", 3)
	f.eventually("the port is open on worker2 again", func() string { return f.pings("worker2", 6380) })

	f.do("manager1", "service create --detach --name host --replicas 4 --publish mode=host,published=6381,target=6379 "+redisNew)
	f.eventually("one task of four has no node with the port free", func() string {
		ts := f.tasks("manager1", "host")
		up := map[string]bool{}
		waits := ""
		for _, x := range ts {
			if strings.HasPrefix(x.state, "Running") {
				up[x.node] = true
			} else {
				waits += x.err
			}
		}
		if len(ts) == 4 && len(up) == 3 && strings.Contains(waits, "no suitable node (host-mode port already in use on 3 nodes)") {
			return ""
		}
		return fmt.Sprintf("tasks: %+v", ts)
	})
	f.do("manager1", "service rm top everywhere host")
	for _, n := range nodes {
		f.eventually("nothing runs on "+n, func() string { return f.do(n, "ps -q") })
	}
}
