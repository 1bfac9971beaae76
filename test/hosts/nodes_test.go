package hosts

import (
	"fmt"
	"strings"
	"testing"
)

// roles waits until node ls, asked at machine, shows these lines of
// "hostname status manager-status" and nothing else.
func (f *fleet) roles(machine string, want ...string) {
	f.t.Helper()
	f.eventually("nodes are "+strings.Join(want, ", "), func() string {
		r := f.try(machine, "node ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}")
		var got []string
		for line := range strings.Lines(r.out) {
			got = append(got, strings.TrimSpace(line))
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return ""
		}
		return "nodes are " + fmt.Sprint(got) + r.err
	})
}

// TestNodes: promote, demote, leave, rm, update, a lost quorum.
func TestNodes(t *testing.T) {
	f := newFleet(t, "m1", "m2", "m3", "w1")
	f.swarm([]string{"m1"}, []string{"m2", "m3", "w1"})
	f.roles("m1", "m1 Ready Leader", "m2 Ready", "m3 Ready", "w1 Ready")

	if out := f.do("m1", "node promote m2 m3"); out != "Node m2 promoted to a manager in the swarm.\nNode m3 promoted to a manager in the swarm." {
		t.Errorf("promote said %q", out)
	}
	f.roles("m1", "m1 Ready Leader", "m2 Ready Reachable", "m3 Ready Reachable", "w1 Ready")
	f.do("m3", "node ls") // it answers as a manager now

	f.do("m2", "node update --label-add disk=ssd --availability pause w1")
	if out := f.do("m1", "node inspect w1 --format {{.Spec.Labels.disk}}/{{.Spec.Availability}}"); out != "ssd/pause" {
		t.Errorf("node update left %q", out)
	}
	f.do("m2", "node update --availability active w1")
	if out := f.do("m1", "node inspect --pretty w1"); !strings.Contains(out, "disk=ssd") || !strings.Contains(out, "Hostname:") {
		t.Errorf("inspect --pretty:\n%s", out)
	}

	f.do("m1", "service create --detach --name web --replicas 4 skep/whoami")
	f.running("m1", "web", 4)
	if out := f.do("m1", "node ps w1"); !strings.Contains(out, "web.") {
		t.Errorf("node ps w1:\n%s", out)
	}

	if out := f.do("m1", "node demote m3"); out != "Manager m3 demoted in the swarm." {
		t.Errorf("demote said %q", out)
	}
	f.roles("m1", "m1 Ready Leader", "m2 Ready Reachable", "m3 Ready", "w1 Ready")
	f.refused(1, "This node is not a swarm manager.", "m3", "node ls")
	f.running("m1", "web", 4) // its tasks went on

	f.refused(1, "is not down and can't be removed", "m1", "node rm w1")
	if out := f.do("w1", "swarm leave"); out != "Node left the swarm." {
		t.Errorf("leave said %q", out)
	}
	f.roles("m1", "m1 Ready Leader", "m2 Ready Reachable", "m3 Ready", "w1 Down")
	f.running("m1", "web", 4)
	f.do("m1", "node rm w1")
	f.roles("m1", "m1 Ready Leader", "m2 Ready Reachable", "m3 Ready")
	if out := f.do("w1", "ps -aq"); out != "" {
		t.Errorf("containers are left on a node that left: %s", out)
	}

	f.do("m1", "swarm update --task-history-limit 2 --cert-expiry 48h")
	f.eventually("every manager knows", func() string {
		out := f.do("m2", "info")
		if strings.Contains(out, "Task History Retention Limit: 2") && strings.Contains(out, "Expiry Duration: 2 days") {
			return ""
		}
		return out
	})

	// Both other managers are gone for good: the last one begins anew with all
	// the state.
	f.skep("machine", "kill", "m2")
	f.refused(1, "", "m1", "service create --detach --name lost skep/whoami")
	f.do("m1", "swarm init --force-new-cluster --advertise-addr eth0")
	f.eventually("one manager leads with the old state", func() string {
		ls := f.try("m1", "service ls")
		nodes := f.try("m1", "node ls")
		if strings.Contains(ls.out, "web") && strings.Contains(nodes.out, "Leader") {
			return ""
		}
		return "it says " + ls.out + ls.err + nodes.out + nodes.err
	})
	f.eventually("the service is at its number", func() string {
		if out := f.try("m1", "service ls --filter name=web --format {{.Replicas}}").out; strings.TrimSpace(out) != "4/4" {
			return "it is " + out
		}
		return ""
	})
}
