package hosts

import (
	"fmt"
	"testing"
)

const (
	notInSwarm = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	workerOnly = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state."
	already    = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	badToken   = "A valid join token is necessary to join this cluster"
)

// TestNewcomersErrors: the errors a newcomer meets first have Docker's words and
// exit codes, and change nothing. They are typed with the real docker command.
func TestNewcomersErrors(t *testing.T) {
	f := newFleet(t, "manager1", "worker1")
	f.cli = "docker"

	for _, line := range []string{"node ls", "service ls", "service ps x", "service create busybox", "swarm join-token worker", "network create -d overlay ov"} {
		f.refused(1, notInSwarm, "manager1", line)
	}
	f.refused(1, "This node is not part of a swarm", "manager1", "swarm leave")
	f.refused(1, "advertise address must be a non-zero IP address or network interface (with optional port number)", "manager1", "swarm init --advertise-addr bogus")
	f.refused(1, "listen address must be an IP address or network interface (with optional port number)", "manager1", "swarm init --listen-addr foo --advertise-addr eth0")
	f.refused(1, "", "manager1", "swarm init --advertise-addr 192.0.2.77")
	f.refused(1, "", "manager1", "swarm init --advertise-addr eth0:70000")
	if s := f.do("manager1", "info --format {{.Swarm.LocalNodeState}}"); s != "inactive" {
		t.Fatalf("refused inits left the node %s", s)
	}

	f.do("manager1", "swarm init --advertise-addr eth0")
	f.refused(1, already, "manager1", "swarm init --advertise-addr eth0")
	addr := f.ip("manager1") + ":2377"
	token := f.do("manager1", "swarm join-token -q worker")
	f.refused(1, "invalid join token", "worker1", "swarm join --token foo "+addr)
	f.refused(1, badToken, "worker1", "swarm join --token "+token[:len(token)-3]+"aaa "+addr)
	f.refused(1, "remote CA does not match fingerprint", "worker1", "swarm join --token SWMTKN-1-00000000000000000000000000000000000000000000000000"+token[len(token)-26:]+" "+addr)
	f.refused(1, "connection refused", "worker1", "swarm join --token "+token+" "+f.ip("manager1")+":2399")
	if s := f.do("worker1", "info --format {{.Swarm.LocalNodeState}}"); s != "inactive" {
		t.Fatalf("refused joins left the node %s", s)
	}
	f.do("worker1", "swarm join --token "+token+" "+addr)
	f.refused(1, workerOnly, "worker1", "node ls")
	f.refused(1, already, "worker1", "swarm join --token "+token+" "+addr)

	f.do("manager1", "service create --detach --name web --publish 8080:80 skep/whoami")
	f.refused(1, "name conflicts with an existing object: service web already exists", "manager1", "service create --detach --name web skep/whoami")
	id := f.do("manager1", "service inspect --format {{.ID}} web")
	f.refused(1, fmt.Sprintf("port '8080' is already in use by service 'web' (%s) as an ingress port", id), "manager1", "service create --detach --publish 8080:81 skep/whoami")
	f.refused(1, "no such service: nosuch", "manager1", "service ps nosuch")
	f.refused(1, "service nosuch not found", "manager1", "service rm nosuch")
	f.refused(1, "node nosuch not found", "manager1", "node rm nosuch")
	f.refused(1, "network nosuch not found", "manager1", "service create --detach --network nosuch skep/whoami")
	f.refused(1, "constraint expected one operator from ==, !=", "manager1", "service create --detach --constraint foo skep/whoami")
	f.refused(1, "invalid memory value 1024: Must be at least 4MiB", "manager1", "service create --detach --limit-memory 1k skep/whoami")
	if n := f.do("manager1", "service ls -q"); n != id[:12] {
		t.Errorf("refused commands changed the services: %q", n)
	}
	// An image that cannot be found: the task says so.
	f.do("manager1", "service create --detach --name ghost --restart-condition none registry.invalid/no/such:1")
	f.eventually("the task is rejected for its image", func() string {
		for _, x := range f.tasks("manager1", "ghost") {
			if x.err != "" {
				return ""
			}
		}
		return f.do("manager1", "service ps ghost")
	})
	f.refused(125, "Unable to find image", "manager1", "run registry.invalid/no/such:1")
	f.refused(1, "last manager", "manager1", "swarm leave")
}
