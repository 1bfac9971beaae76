package hosts

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// answer is what skep/whoami says: its lines as a map.
func answer(body string) map[string]string {
	a := map[string]string{}
	for line := range strings.Lines(body) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			a[k] = v
		}
	}
	return a
}

// ask sends a request to a port of a machine over "tcp" (HTTP) or "udp".
func (f *fleet) ask(proto, machine string, port int) (map[string]string, error) {
	return askAddr(proto, f.ip(machine), port)
}

func askAddr(proto, addr string, port int) (map[string]string, error) {
	c, err := net.DialTimeout(proto, fmt.Sprintf("%s:%d", addr, port), 2*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	n := 0
	for {
		k, err := c.Read(buf[n:])
		n += k
		if proto == "udp" || err != nil {
			break
		}
	}
	a := answer(string(buf[:n]))
	if a["Task"] == "" {
		return nil, fmt.Errorf("%s:%d/%s answered %q", addr, port, proto, buf[:n])
	}
	a["local"] = c.LocalAddr().(interface{ String() string }).String()
	return a, nil
}

// TestMesh: a published port answers on every node, TCP and UDP, balanced over
// the tasks of all nodes, with the client's own address at the task.
func TestMesh(t *testing.T) {
	f := newFleet(t, "manager1", "worker1", "worker2")
	f.swarm([]string{"manager1"}, []string{"worker1", "worker2"})
	// Two tasks on three nodes: one node has none.
	f.do("manager1", "service create --detach --name web --replicas 2 --publish 8080:80 --publish published=8081,target=80,protocol=udp skep/whoami")
	f.running("manager1", "web", 2)
	for _, m := range []string{"manager1", "worker1", "worker2"} {
		for proto, port := range map[string]int{"tcp": 8080, "udp": 8081} {
			seen := map[string]bool{}
			f.eventually(fmt.Sprintf("%s/%s on %s balances and keeps the client's address", proto, "mesh", m), func() string {
				a, err := f.ask(proto, m, port)
				if err != nil {
					return err.Error()
				}
				if a["Client"] != a["local"] {
					return fmt.Sprintf("the task saw %s, the client is %s", a["Client"], a["local"])
				}
				seen[a["Task"]] = true
				if len(seen) < 2 {
					return fmt.Sprintf("only %v answered", seen)
				}
				return ""
			})
		}
	}
	// From inside: a node asks itself and another node.
	for _, url := range []string{"http://127.0.0.1:8080/", "http://" + f.ip("worker2") + ":8080/"} {
		r := f.exec(nil, skepBin(), "machine", "ssh", "worker1", "curl", "-s", "--max-time", "2", url)
		if a := answer(r.out); a["Service"] != "web" {
			t.Errorf("on worker1, %s answered %q (exit %d)", url, r.out, r.exit)
		}
	}
	f.do("manager1", "service scale --detach web=1")
	f.running("manager1", "web", 1)
	last := ""
	for range 20 {
		a, err := f.ask("tcp", "worker2", 8080)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" && a["Task"] != last {
			t.Fatalf("after scaling to one, both %s and %s answer", last, a["Task"])
		}
		last = a["Task"]
	}
	f.refused(1, "port '8080' is already in use by service 'web'", "manager1", "service create --detach --name thief --publish 8080:80 skep/whoami")
	f.do("manager1", "service rm web")
	f.eventually("the port is closed", func() string {
		if _, err := f.ask("tcp", "manager1", 8080); err == nil {
			return "it still answers"
		}
		return ""
	})
}

// TestOverlay: names, virtual addresses and containers of several hosts in one
// network.
func TestOverlay(t *testing.T) {
	f := newFleet(t, "manager1", "worker1", "worker2")
	f.swarm([]string{"manager1"}, []string{"worker1", "worker2"})
	nodes := []string{"manager1", "worker1", "worker2"}
	f.load("busybox", nodes...)
	f.do("manager1", "network create -d overlay --attachable net1")
	f.do("manager1", "service create --detach --name web --replicas 3 --network net1 skep/whoami")
	f.do("manager1", "service create --detach --name rr --replicas 2 --endpoint-mode dnsrr --network net1 skep/whoami")
	f.do("manager1", "service create --detach --name client --mode global --network net1 busybox sleep 1000000")
	f.running("manager1", "web", 3)
	f.running("manager1", "rr", 2)
	for _, c := range f.running("manager1", "client", 3) {
		id := f.do(c.node, "ps -q --filter label=com.docker.swarm.task.id="+c.id)
		inside := func(cmd string) string { return f.do(c.node, "exec "+id+" sh -c", cmd) }
		f.eventually("names on "+c.node, func() string {
			for name, want := range map[string]int{"web": 1, "tasks.web": 3, "rr": 2} {
				out := f.try(c.node, "exec "+id+" nslookup "+name).out
				_, answers, _ := strings.Cut(out, "Name:")
				if got := strings.Count(answers, "Address"); got != want {
					return fmt.Sprintf("%s has %d addresses, want %d:\n%s", name, got, want, out)
				}
			}
			return ""
		})
		seen := map[string]bool{}
		for range 40 {
			seen[answer(inside("timeout 5 wget -q -O - http://web/"))["Task"]] = true
		}
		if len(seen) != 3 {
			t.Errorf("through the virtual address on %s answered %v, want three tasks", c.node, seen)
		}
		if out := inside("ping -c 1 -W 2 web"); !strings.Contains(out, "1 packets received") {
			t.Errorf("ping web on %s:\n%s", c.node, out)
		}
	}
	// A plain container joins, reaches the service and is reached by name.
	if a := answer(f.do("worker1", "run --rm --network net1 busybox timeout 5 wget -q -O - http://web/")); a["Service"] != "web" {
		t.Errorf("a container of worker1 got %v", a)
	}
	f.do("worker2", "run -d --name plain --network net1 skep/whoami")
	f.eventually("the plain container by its name from another host", func() string {
		r := f.try("worker1", "run --rm --network net1 busybox timeout 5 wget -q -O - http://plain/")
		if answer(r.out)["Client"] == "" {
			return "answered: " + r.out + r.err
		}
		return ""
	})
	f.refused(1, "", "manager1", "network rm net1")
}

// TestHostModePublishing: the port opens on the task's own node alone.
func TestHostModePublishing(t *testing.T) {
	f := newFleet(t, "manager1", "worker1")
	f.swarm([]string{"manager1"}, []string{"worker1"})
	f.do("manager1", "service create --detach --name one --constraint node.role==worker --publish mode=host,published=9000,target=80 skep/whoami")
	f.running("manager1", "one", 1)
	f.eventually("the task's node answers", func() string {
		if _, err := f.ask("tcp", "worker1", 9000); err != nil {
			return err.Error()
		}
		return ""
	})
	if _, err := f.ask("tcp", "manager1", 9000); err == nil {
		t.Error("the other node answers too")
	}
	// A second task for the same port has nowhere to go, and says so.
	f.do("manager1", "service scale --detach one=2")
	f.eventually("the second task says why it waits", func() string {
		for _, x := range f.tasks("manager1", "one", "desired-state=running") {
			if strings.HasPrefix(x.state, "Pending") && strings.Contains(x.err, "no suitable node") {
				return ""
			}
		}
		return f.do("manager1", "service ps --no-trunc one")
	})
}
