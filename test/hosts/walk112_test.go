package hosts

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestWalkthroughOf112 is what people typed in the days of Docker 1.12, when
// Swarm mode was new: a swarm, a service, and then losing things.
func TestWalkthroughOf112(t *testing.T) {
	both(t, func(t *testing.T, cli string) {
		f := newFleet(t, "manager1", "manager2", "manager3", "worker1")
		f.cli = cli
		nodes := []string{"manager1", "manager2", "manager3", "worker1"}
		walkInit(f)
		walkTokens(f)
		walkInfo(f)
		f.load("nginx", nodes...)
		walkService(f, nodes)
		walkKillContainer(f)
		leader := walkKillLeader(f)
		walkReturn(f, leader)
	})
}

func walkInit(f *fleet) {
	out := f.do("manager1", "swarm init --advertise-addr eth0 --listen-addr eth0:2377")
	if !strings.HasPrefix(out, "Swarm initialized: current node (") || !strings.Contains(out, "swarm join --token SWMTKN-1-") {
		f.t.Fatalf("swarm init said:\n%s", out)
	}
	manager := f.do("manager1", "swarm join-token -q manager")
	worker := f.do("manager1", "swarm join-token -q worker")
	for _, n := range []string{"manager2", "manager3"} {
		if out := f.do(n, "swarm join --token "+manager+" --advertise-addr eth0 --listen-addr eth0:2377 "+f.ip("manager1")+":2377"); out != "This node joined a swarm as a manager." {
			f.t.Fatalf("%s said %q", n, out)
		}
	}
	if out := f.do("worker1", "swarm join --token "+worker+" "+f.ip("manager1")+":2377"); out != "This node joined a swarm as a worker." {
		f.t.Fatalf("worker1 said %q", out)
	}
	f.eventually("node ls shows four ready nodes, one leader, two reachable", func() string {
		ls := f.do("manager1", "node ls")
		if strings.Count(ls, "Ready") == 4 && strings.Count(ls, "Leader") == 1 && strings.Count(ls, "Reachable") == 2 {
			return ""
		}
		return "nodes: " + ls
	})
	f.refused(1, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state.", "worker1", "node ls")
	f.refused(1, "This node is already part of a swarm.", "worker1", "swarm join --token "+worker+" "+f.ip("manager1")+":2377")
}

func walkTokens(f *fleet) {
	old := f.do("manager1", "swarm join-token -q worker")
	shown := f.do("manager1", "swarm join-token worker")
	if !strings.Contains(shown, old) || !strings.Contains(shown, "To add a worker to this swarm, run the following command:") {
		f.t.Fatalf("join-token said:\n%s", shown)
	}
	rotated := f.do("manager1", "swarm join-token --rotate worker")
	if !strings.Contains(rotated, "Successfully rotated worker join token.") {
		f.t.Fatalf("join-token --rotate said:\n%s", rotated)
	}
	fresh := f.do("manager2", "swarm join-token -q worker")
	if fresh == old || !strings.Contains(rotated, fresh) {
		f.t.Fatalf("after rotation manager2 shows %s; it was %s", fresh, old)
	}
	f.skep("machine", "create", "stranger")
	f.refused(1, "A valid join token is necessary to join this cluster", "stranger", "swarm join --token "+old+" "+f.ip("manager1")+":2377")
	if s := f.do("stranger", "info --format {{.Swarm.LocalNodeState}}"); s != "inactive" {
		f.t.Fatalf("a refused join left the node %s", s)
	}
	f.skep("machine", "rm", "-f", "stranger")
}

func walkInfo(f *fleet) {
	info := f.do("manager1", "info")
	for _, want := range []string{"Swarm: active", "Is Manager: true", "Managers: 3", "Nodes: 4", "Node Address: " + f.ip("manager1")} {
		if !strings.Contains(info, want) {
			f.t.Errorf("info has no %q:\n%s", want, info)
		}
	}
	if info := f.do("worker1", "info"); !strings.Contains(info, "Is Manager: false") {
		f.t.Errorf("a worker's info:\n%s", info)
	}
}

func walkService(f *fleet, nodes []string) {
	f.do("manager1", "service create --detach --name nginx --replicas 5 -p 8080:80 nginx")
	up := f.running("manager1", "nginx", 5)
	if n := perNode(up); len(n) != 4 {
		f.t.Errorf("five tasks on %v: want every node used", n)
	}
	if ls := f.do("manager2", "service ls"); !strings.Contains(ls, "5/5") || !strings.Contains(ls, "*:8080->80/tcp") {
		f.t.Errorf("service ls on a follower:\n%s", ls)
	}
	for _, n := range nodes {
		f.serves(n, "nginx")
	}
}

// serves waits until a machine answers on port 8080 with words in it.
func (f *fleet) serves(machine, words string) {
	f.t.Helper()
	addr := "http://" + f.ip(machine) + ":8080/"
	f.eventually(addr, func() string {
		c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(addr)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(body), words) {
			return fmt.Sprintf("%v %q", err, body)
		}
		return ""
	})
}

// slot returns the running task of a slot.
func slot(f *fleet, ts []task, name string) task {
	f.t.Helper()
	i := slices.IndexFunc(ts, func(t task) bool { return t.name == name })
	if i < 0 {
		f.t.Fatalf("no %s in %+v", name, ts)
	}
	return ts[i]
}

// kill kills a task's container on its node.
func (f *fleet) kill(t task) {
	f.t.Helper()
	id := f.do(t.node, "ps -q --filter label=com.docker.swarm.task.id="+t.id)
	f.do(t.node, "kill "+id)
}

func walkKillContainer(f *fleet) {
	victim := slot(f, f.running("manager1", "nginx", 5), "nginx.3")
	f.kill(victim)
	f.eventually("the killed task in the history", func() string {
		for _, t := range f.tasks("manager1", "nginx") {
			if t.id == victim.id && t.name == `\_ nginx.3` || t.id == victim.id && t.name == "nginx.3" {
				if strings.HasPrefix(t.state, "Failed") && t.err == `"task: non-zero exit (137)"` {
					return ""
				}
			}
		}
		return f.do("manager1", "service ps nginx")
	})
	f.running("manager1", "nginx", 5)
	if ps := f.do("manager1", "service ps nginx"); !strings.Contains(ps, ` \_ nginx.3`) {
		f.t.Errorf("service ps shows no history of nginx.3:\n%s", ps)
	}
}

// leader returns the node that leads, asked at machine.
func (f *fleet) leader(machine string) string {
	f.t.Helper()
	for line := range strings.Lines(f.try(machine, "node ls", "--format", "{{.Hostname}} {{.ManagerStatus}}").out) {
		if p := strings.Fields(line); len(p) == 2 && p[1] == "Leader" {
			return p[0]
		}
	}
	return ""
}

func walkKillLeader(f *fleet) string {
	old := f.leader("manager1")
	rest := slices.DeleteFunc([]string{"manager1", "manager2", "manager3"}, func(n string) bool { return n == old })
	if len(rest) != 2 {
		f.t.Fatalf("%q leads", old)
	}
	f.skep("machine", "kill", old)
	f.eventually("another leader, the old one unreachable and down", func() string {
		ls := f.try(rest[0], "node ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}").out
		now := f.leader(rest[0])
		if now != "" && now != old && strings.Contains(ls, old+" Down Unreachable") {
			return ""
		}
		return "nodes: " + ls
	})
	f.eventually("the lost host's tasks run elsewhere", func() string {
		up := 0
		for _, t := range f.tasks(rest[0], "nginx", "desired-state=running") {
			if t.node != old && strings.HasPrefix(t.state, "Running") {
				up++
			}
		}
		if up == 5 {
			return ""
		}
		return "tasks: " + f.try(rest[0], "service ps nginx").out
	})
	for _, n := range rest {
		f.serves(n, "nginx")
	}
	return old
}

func walkReturn(f *fleet, back string) {
	via := "worker1"
	for _, m := range []string{"manager1", "manager2", "manager3"} {
		if m != back {
			via = m
		}
	}
	before := f.running(via, "nginx", 5)
	f.skep("machine", "start", back)
	f.eventually(back+" is ready and reachable again", func() string {
		ls := f.try(via, "node ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}").out
		if strings.Contains(ls, back+" Ready Reachable") {
			return ""
		}
		return "nodes: " + ls
	})
	after := f.running(via, "nginx", 5)
	if perNode(after)[back] != 0 {
		f.t.Errorf("tasks were rebalanced onto the returned node: %+v", after)
	}
	// One of two tasks of a node dies: its replacement goes to the empty node.
	for node, n := range perNode(before) {
		if n < 2 {
			continue
		}
		i := slices.IndexFunc(after, func(t task) bool { return t.node == node })
		f.kill(after[i])
		f.eventually("the replacement on the empty node", func() string {
			for _, t := range f.tasks(via, "nginx", "desired-state=running") {
				if t.name == after[i].name && t.node == back && strings.HasPrefix(t.state, "Running") {
					return ""
				}
			}
			return "tasks: " + f.try(via, "service ps nginx").out
		})
		return
	}
	f.t.Fatalf("no node has two of five tasks: %+v", before)
}
