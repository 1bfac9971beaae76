package hosts

import (
	"slices"
	"strings"
	"testing"
)

// TestServices: what a service can be told, and what its user sees of it.
func TestServices(t *testing.T) {
	f := newFleet(t, "m1", "w1", "w2")
	f.swarm([]string{"m1"}, []string{"w1", "w2"})
	f.load("busybox", "m1", "w1", "w2")
	f.do("m1", "node update --label-add zone=a w1")
	f.do("m1", "node update --label-add zone=b w2")

	t.Run("create", func(t *testing.T) { f.in(t).created() })
	t.Run("global", func(t *testing.T) { f.in(t).global() })
	t.Run("placement", func(t *testing.T) { f.in(t).placement() })
	t.Run("logs", func(t *testing.T) { f.in(t).serviceLogs() })
	t.Run("health", func(t *testing.T) { f.in(t).health() })
	t.Run("restart", func(t *testing.T) { f.in(t).restarts() })
	t.Run("waiting", func(t *testing.T) { f.in(t).waiting() })
	t.Run("progress", func(t *testing.T) { f.in(t).progress() })
}

// container returns the id of a running task's container.
func (f *fleet) container(x task) string {
	f.t.Helper()
	return f.do(x.node, "ps -q --filter label=com.docker.swarm.task.id="+x.id)
}

func (f *fleet) created() {
	f.do("m1", "service create --detach --name all --env A=b --env", `SLOT={{.Task.Slot}}`,
		"--label", "tier=one", "--container-label", "inner=two", "--hostname", "h-{{.Service.Name}}-{{.Task.Slot}}",
		"--mount", "type=volume,src=data,dst=/data", "--mount", "type=tmpfs,dst=/scratch", "--user", "1000", "--workdir", "/tmp",
		"--limit-memory", "64m", "--limit-cpu", "0.5", "--reserve-memory", "16m", "--limit-pids", "50",
		"--stop-grace-period", "1s", "--stop-signal", "SIGKILL", "--constraint", "node.hostname==w1", "--ulimit", "nofile=100",
		"--dns", "192.0.2.53", "--host", "other:192.0.2.1", "--sysctl", "net.ipv4.ip_default_ttl=33", "--cap-drop", "NET_RAW", "--init", "--read-only=false",
		"busybox", "sleep", "1000000")
	x := f.running("m1", "all", 1)[0]
	id := f.container(x)
	in := func(cmd string) string { return f.do(x.node, "exec "+id+" sh -c", cmd) }
	for cmd, want := range map[string]string{
		"echo $A$SLOT":                          "b1",
		"hostname":                              "h-all-1",
		"id -u":                                 "1000",
		"cat /proc/1/comm":                      "docker-init",
		"pwd":                                   "/tmp",
		"ulimit -n":                             "100",
		"cat /proc/sys/net/ipv4/ip_default_ttl": "33",
		"grep -c 192.0.2.1 /etc/hosts":          "1",
		"grep -c ' /data \\| /scratch ' /proc/mounts": "2",
	} {
		if got := in(cmd); got != want {
			f.t.Errorf("in the task, %s says %q, want %q", cmd, got, want)
		}
	}
	for what, want := range map[string]string{
		`{{index .Config.Labels "inner"}}`:                                          "two",
		`{{index .Config.Labels "com.docker.swarm.service.name"}}`:                  "all",
		`{{index .Config.Labels "com.docker.swarm.task.name"}}`:                     "all.1." + x.id,
		`{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}`: "67108864 500000000 50",
		`{{.Name}}`: "/all.1." + x.id,
	} {
		if got := f.do(x.node, "inspect "+id+" --format", what); got != want {
			f.t.Errorf("inspect %s is %q, want %q", what, got, want)
		}
	}
	if out := f.do("m1", "service inspect --pretty all"); !strings.Contains(out, "Service Mode:\tReplicated") || !strings.Contains(out, "node.hostname==w1") {
		f.t.Errorf("inspect --pretty:\n%s", out)
	}
	f.do("m1", "service rm all")
	f.eventually("its container is gone", func() string { return f.do("w1", "ps -aq --filter label=com.docker.swarm.service.name=all") })
}

func (f *fleet) global() {
	f.do("m1", "service create --detach --name everywhere --mode global busybox sleep 1000000")
	if n := perNode(f.running("m1", "everywhere", 3)); len(n) != 3 {
		f.t.Errorf("global on %v", n)
	}
	f.skep("machine", "create", "w3")
	f.load("busybox", "w3")
	f.do("w3", "swarm join --token "+f.do("m1", "swarm join-token -q worker")+" "+f.ip("m1")+":2377")
	f.running("m1", "everywhere", 4)
	f.refused(1, "", "m1", "service scale everywhere=5")
	f.do("m1", "service rm everywhere")
	f.do("w3", "swarm leave")
	f.skep("machine", "rm", "-f", "w3")
	f.eventually("w3 is down", func() string {
		if strings.Contains(f.do("m1", "node ls", "--format", "{{.Hostname}} {{.Status}}"), "w3 Down") {
			return ""
		}
		return "it is not"
	})
	f.do("m1", "node rm w3")
}

func (f *fleet) placement() {
	f.do("m1", "service create --detach --name spread --replicas 4 --placement-pref spread=node.labels.zone --constraint node.role==worker busybox sleep 1000000")
	if n := perNode(f.running("m1", "spread", 4)); n["w1"] != 2 || n["w2"] != 2 {
		f.t.Errorf("spread over zones: %v", n)
	}
	f.do("m1", "service update --detach --constraint-add node.labels.zone==a --update-monitor 100ms spread")
	f.eventually("all on zone a", func() string {
		if n := perNode(f.running("m1", "spread", 4)); n["w1"] != 4 {
			return "they are on " + strings.Join(slices.Sorted(mapKeys(n)), ",")
		}
		return ""
	})
	f.do("m1", "service rm spread")
}

func mapKeys(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (f *fleet) serviceLogs() {
	f.do("m1", "service create --detach --name talk --replicas 3 busybox sh -c", "echo out of $HOSTNAME; echo err >&2; sleep 1000000")
	f.running("m1", "talk", 3)
	f.eventually("service logs show every task", func() string {
		r := f.try("m1", "service logs talk")
		if strings.Count(r.out, "out of") == 3 && strings.Count(r.err, "err") == 3 && strings.Contains(r.out, "talk.1.") {
			return ""
		}
		return "so far: " + r.out + r.err
	})
	if r := f.try("m1", "service logs --raw --tail 1 talk"); strings.Contains(r.out, "talk.") {
		f.t.Errorf("--raw shows\n%s", r.out)
	}
	id := f.tasks("m1", "talk")[0].id
	if r := f.try("m1", "service logs "+id); strings.Count(r.out, "out of") != 1 {
		f.t.Errorf("the logs of one task:\n%s%s", r.out, r.err)
	}
	f.do("m1", "service rm talk")
}

func (f *fleet) health() {
	f.do("m1", "service create --detach --name sick --health-cmd", "test ! -e /tmp/sick",
		"--health-interval", "200ms", "--health-retries", "2", "--restart-delay", "0s", "busybox", "sleep", "1000000")
	x := f.running("m1", "sick", 1)[0]
	f.do(x.node, "exec "+f.container(x)+" touch /tmp/sick")
	f.eventually("the sick task is replaced", func() string {
		for _, y := range f.tasks("m1", "sick") {
			if y.id == x.id && strings.HasPrefix(y.state, "Failed") && strings.Contains(y.err, "unhealthy") {
				return ""
			}
		}
		return "tasks: " + f.do("m1", "service ps --no-trunc sick")
	})
	f.running("m1", "sick", 1)
	f.do("m1", "service rm sick")
}

func (f *fleet) restarts() {
	f.do("m1", "service create --detach --name once --restart-condition none busybox true")
	f.eventually("it is complete and stays so", func() string {
		ts := f.tasks("m1", "once")
		if len(ts) == 1 && strings.HasPrefix(ts[0].state, "Complete") {
			return ""
		}
		return "tasks: " + f.do("m1", "service ps once")
	})
	f.do("m1", "service create --detach --name thrice --restart-condition on-failure --restart-max-attempts 2 --restart-delay 100ms busybox sh -c", "exit 9")
	f.eventually("three tries, then no more", func() string {
		n := 0
		for _, x := range f.tasks("m1", "thrice") {
			if strings.HasPrefix(x.state, "Failed") && strings.Contains(x.err, "non-zero exit (9)") {
				n++
			}
		}
		if n == 3 {
			return ""
		}
		return "tasks: " + f.do("m1", "service ps thrice")
	})
	f.do("m1", "service rm once thrice")
}

func (f *fleet) waiting() {
	f.do("m1", "service create --detach --name big --reserve-memory 1000g busybox sleep 1")
	f.do("m1", "service create --detach --name nowhere --constraint node.labels.zone==z busybox sleep 1")
	for service, why := range map[string]string{"big": "insufficient resources on 3 nodes", "nowhere": "scheduling constraints not satisfied on 3 nodes"} {
		f.eventually(service+" says why it waits", func() string {
			out := f.do("m1", "service ps --no-trunc "+service)
			if strings.Contains(out, "no suitable node ("+why+")") && strings.Contains(out, "Pending") {
				return ""
			}
			return "tasks: " + out
		})
	}
	f.do("m1", "service rm big nowhere")
}

func (f *fleet) progress() {
	r := f.try("m1", "service create --name shown --replicas 2 busybox sleep 1000000")
	if r.exit != 0 || !strings.Contains(r.out, "overall progress: 2 out of 2 tasks") || !strings.Contains(r.out, "verify: Service ") || !strings.Contains(r.out, "converged") {
		f.t.Errorf("service create without --detach, exit %d:\n%s%s", r.exit, r.out, r.err)
	}
	r = f.try("m1", "service scale shown=3")
	if r.exit != 0 || !strings.Contains(r.out, "shown scaled to 3") || !strings.Contains(r.out, "converged") {
		f.t.Errorf("service scale, exit %d:\n%s%s", r.exit, r.out, r.err)
	}
	f.do("m1", "service rm shown")
}
