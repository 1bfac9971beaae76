package hosts

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

const (
	followNet   = "follow"
	followShare = 40 // of the 200 changes, in a run that does not ask for more
)

// TestFollow: names, virtual addresses and the mesh follow the replicated state.
// While a service is scaled, its containers are killed, nodes are drained, lose
// power and lead no more, at random, a checker on every node asks for its names,
// connects to it by its virtual address and through the mesh. No answer may
// point at a task that was gone for more than a second.
//
// A task is gone when its process has ended. When it ended with its host, it is
// gone from the moment on that the cluster takes the host for lost: before, no
// one can know. A node that has no session with a leader, because there is none
// or because it has just come back, can hear of nothing; the second begins when
// it hears again (truth.deaf).
//
// SKEP_SEED replays a run's choices, SKEP_CHANGES says how many (200 for all).
func TestFollow(t *testing.T) {
	seed, changes := uint64(time.Now().UnixNano()), followShare
	for env, to := range map[string]func(string) error{
		"SKEP_SEED":    func(s string) (err error) { seed, err = strconv.ParseUint(s, 10, 64); return err },
		"SKEP_CHANGES": func(s string) (err error) { changes, err = strconv.Atoi(s); return err },
	} {
		if s := os.Getenv(env); s != "" {
			if err := to(s); err != nil {
				t.Fatalf("%s: %v", env, err)
			}
		}
	}
	t.Logf("replay with SKEP_SEED=%d SKEP_CHANGES=%d", seed, changes)

	managers, workers := []string{"m1", "m2", "m3"}, []string{"w1", "w2"}
	nodes := slices.Concat(managers, workers)
	f := newFleet(t, nodes...)
	f.swarm(managers, workers)
	f.load("busybox", nodes...)
	f.do("m1", "network create -d overlay --attachable "+followNet)
	f.do("m1", "service create --detach --name web --replicas 5 --network "+followNet+" --publish 8080:80 --restart-delay 0s --stop-grace-period 2s skep/whoami")
	f.running("m1", "web", 5)

	c := &changer{f: f, w: watch(f, "web", nodes), r: rand.New(rand.NewPCG(seed, 0)), managers: managers, nodes: nodes, replicas: 5}
	t.Cleanup(func() { c.w.end() })
	c.w.h.vip = f.vip("web", followNet)
	dir := f.checkers(nodes)
	mesh := f.askMesh(nodes)
	f.eventually("the first leader is seen", func() string {
		if c.w.heard() {
			return ""
		}
		return "it is not"
	})
	for range changes {
		c.change()
	}
	c.settle()
	answers := append(mesh(), read(t, dir)...)
	c.report(answers, c.w.end())
}

// vip returns a service's virtual address in a network.
func (f *fleet) vip(service, network string) string {
	id := f.do("m1", "network inspect --format {{.Id}} "+network)
	for line := range strings.Lines(f.do("m1", "service inspect --format", "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}", service)) {
		if p := strings.Fields(line); len(p) == 2 && p[0] == id {
			addr, _, _ := strings.Cut(p[1], "/")
			return addr
		}
	}
	f.t.Fatalf("%s has no virtual address in %s", service, network)
	return ""
}

// checkers starts a checker on every node, as a plain container that a drain
// leaves alone, and returns where they write.
func (f *fleet) checkers(nodes []string) string {
	f.t.Helper()
	dir := f.t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "checker"), "./checker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		f.t.Fatalf("checker: %v\n%s", err, out)
	}
	for _, n := range nodes {
		f.do(n, fmt.Sprintf("run -d --name checker --restart always --network %s -v %s:/checker busybox /checker/checker %s web /checker/%s.json", followNet, dir, n, n))
	}
	for _, n := range nodes {
		f.eventually("the checker on "+n, func() string {
			if st, err := os.Stat(filepath.Join(dir, n+".json")); err != nil || st.Size() == 0 {
				return "it says nothing: " + f.try(n, "logs checker").err
			}
			return ""
		})
	}
	return dir
}

// read returns what the checkers wrote. A line cut short by a power cut does not
// count.
func read(t *testing.T, dir string) []answered {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []answered
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			var a answered
			if json.Unmarshal(lines.Bytes(), &a) == nil && a.Asked > 0 {
				all = append(all, a)
			}
		}
		file.Close()
	}
	return all
}

// askMesh connects to the published port of every node, from the host, until
// the returned function is called, which returns the answers.
func (f *fleet) askMesh(nodes []string) func() []answered {
	var mu sync.Mutex
	var all []answered
	var done sync.WaitGroup
	stop := make(chan struct{})
	for _, n := range nodes {
		addr := f.ip(n)
		done.Go(func() {
			tick := time.NewTicker(pollEvery)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				start := time.Now()
				got, err := askAddr("tcp", addr, 8080)
				a := answered{Asked: start.UnixNano(), Took: int64(time.Since(start)), Node: n, Kind: "mesh"}
				if err != nil {
					a.Err = err.Error()
				} else {
					a.Got = []string{got["Task"][strings.LastIndex(got["Task"], ".")+1:]}
				}
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			}
		})
	}
	return sync.OnceValue(func() []answered { close(stop); done.Wait(); return all })
}

// changer changes things at random.
type changer struct {
	f               *fleet
	w               *watcher
	r               *rand.Rand
	managers, nodes []string
	replicas        int
	drained, off    string // at most one node each
	onAfter         int    // changes until the machine that is off comes back
	elections       []time.Duration
	moves           []time.Duration
	counts          [5]int
}

var changeNames = [5]string{"scale", "kill", "drain", "power", "lead"}

// change makes one change and waits a random while; the longer waits let all
// come to rest.
func (c *changer) change() {
	if c.off != "" {
		if c.onAfter--; c.onAfter <= 0 {
			c.powerOn()
		}
	}
	kind := []int{0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4}[c.r.IntN(11)]
	if c.off != "" && kind > 2 {
		kind = c.r.IntN(3)
	}
	c.counts[kind]++
	c.did(kind)
	switch kind {
	case 0:
		c.replicas = 2 + c.r.IntN(7)
		c.f.do(c.via(), fmt.Sprintf("service scale --detach web=%d", c.replicas))
	case 1:
		c.kill()
	case 2:
		c.drain()
	case 3:
		c.cut(c.nodes[c.r.IntN(len(c.nodes))])
	case 4:
		c.depose()
	}
	time.Sleep([]time.Duration{0, 100, 300, 1000, 2500}[c.r.IntN(5)] * time.Millisecond)
}

// did keeps what is about to be done, for those who want to know why.
func (c *changer) did(kind int) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.h.done = append(c.w.h.done, event{time.Now(), changeNames[kind]})
}

// via waits for a leader and returns a manager that is on.
func (c *changer) via() string {
	c.f.t.Helper()
	c.f.eventually("every node that is on hears a leader", func() string {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		for _, m := range c.nodes {
			if c.w.isDeaf(m) && m != c.off {
				return m + " does not"
			}
		}
		return ""
	})
	on := slices.DeleteFunc(slices.Clone(c.managers), func(m string) bool { return m == c.off })
	return on[c.r.IntN(len(on))]
}

// kill kills the process of one running task.
func (c *changer) kill() {
	ts := c.f.tasks(c.via(), "web", "desired-state=running")
	ts = slices.DeleteFunc(ts, func(x task) bool { return x.node == c.off || !strings.HasPrefix(x.state, "Running") })
	if len(ts) == 0 {
		return
	}
	slices.SortFunc(ts, func(a, b task) int { return cmp.Compare(a.name, b.name) })
	x := ts[c.r.IntN(len(ts))]
	if id := c.f.try(x.node, "ps -q --filter label=com.docker.swarm.task.id="+x.id); strings.TrimSpace(id.out) != "" {
		c.f.try(x.node, "kill "+strings.TrimSpace(id.out)) // it may have ended by itself
	}
}

// drain empties a node, or lets the last one in again.
func (c *changer) drain() {
	if c.drained != "" {
		c.f.do(c.via(), "node update --availability active "+c.drained)
		c.drained = ""
		return
	}
	c.drained = c.nodes[c.r.IntN(len(c.nodes))]
	c.f.do(c.via(), "node update --availability drain "+c.drained)
}

// cut cuts a machine's power and waits until the cluster has seen it.
func (c *changer) cut(machine string) {
	c.via()
	leader, _ := c.w.state(machine)
	begun := time.Now()
	cut := func() {
		c.w.power(machine, false)
		c.f.skep("machine", "kill", machine)
	}
	c.off, c.onAfter = machine, 1+c.r.IntN(3)
	if machine == leader {
		c.w.losing(cut)
		c.leads(begun, machine)
	} else {
		cut()
	}
	c.f.eventually(machine+" is seen to be lost", func() string {
		if _, s := c.w.state(machine); s != swarm.NodeStateDown {
			return "it is " + string(s)
		}
		return ""
	})
	if c.replicas > 0 && c.drained != machine {
		c.f.eventually("its tasks run elsewhere", func() string {
			c.w.mu.Lock()
			defer c.w.mu.Unlock()
			if c.w.running != c.replicas {
				return fmt.Sprintf("%d of %d run", c.w.running, c.replicas)
			}
			return ""
		})
		c.moves = append(c.moves, time.Since(begun))
	}
}

// leads waits until a leader takes writes again.
func (c *changer) leads(since time.Time, lost string) {
	on := slices.DeleteFunc(slices.Clone(c.managers), func(m string) bool { return m == lost })
	c.f.eventually("another leader takes writes", func() string {
		return c.f.try(on[0], "service update --detach --label-add n="+strconv.Itoa(len(c.elections))+" web").err
	})
	c.elections = append(c.elections, time.Since(since))
}

func (c *changer) powerOn() {
	c.f.skep("machine", "start", c.off)
	c.w.power(c.off, true)
	c.off = ""
	c.via()
}

// depose ends the leader's daemon, which is started again at once.
func (c *changer) depose() {
	c.via()
	leader, _ := c.w.state("")
	begun := time.Now()
	c.w.losing(func() {
		c.f.exec(nil, skepBin(), "machine", "ssh", leader, "kill -9 $(cat /run/skep.pid)")
	})
	c.leads(begun, leader)
}

// settle brings everything back and waits until the service is whole.
func (c *changer) settle() {
	if c.off != "" {
		c.powerOn()
	}
	if c.drained != "" {
		c.drain()
	}
	c.f.running(c.via(), "web", c.replicas)
	time.Sleep(2 * staleAfter) // what is still wrong now is asked for once more
}

// report judges all answers.
func (c *changer) report(all []answered, h *truth) {
	t := c.f.t
	var ages []time.Duration
	asked, failed := map[string]int{}, map[string]int{}
	wrong := 0
	for _, a := range all {
		asked[a.Kind+" on "+a.Node]++
		if a.Err != "" {
			failed[a.Kind]++
			if h.calm(a) {
				t.Logf("%s on %s got no answer at %s, for no reason that is known: %s (%v)", a.Kind, a.Node, a.at().Format(clock), a.Err, time.Duration(a.Took))
				t.Log(h.around(a))
			}
			continue
		}
		age, task, complaint := h.judge(a)
		if age > 0 {
			ages = append(ages, age)
		}
		if age > staleAfter || complaint != "" {
			if wrong++; wrong <= 20 {
				t.Errorf("%s on %s answered %v at %s: task %s was gone for %v; %s\n%s", a.Kind, a.Node, a.Got,
					a.at().Format(clock), task, age, complaint, h.around(a))
			}
		}
	}
	slices.Sort(ages)
	made := ""
	for i, n := range c.counts {
		made += fmt.Sprintf(" %s %d", changeNames[i], n)
	}
	t.Logf("changes:%s; leaders seen %d; tasks %d; answers %d, without one: %v, wrong: %d", made, c.w.terms, len(h.tasks), len(all), failed, wrong)
	if n := len(ages); n > 0 {
		t.Logf("%d answers pointed at a task that was gone, for %v at most, %v in the middle", n, ages[n-1], ages[n/2])
	}
	t.Logf("engines told of an end after %v", median(c.w.clearing))
	t.Logf("another leader took writes after %v; a lost host's tasks ran elsewhere after %v", median(c.elections), median(c.moves))
	for _, n := range c.nodes {
		for _, kind := range []string{"name", "tasks", "vip", "mesh"} {
			if asked[kind+" on "+n] == 0 {
				t.Errorf("nothing was asked: %s on %s", kind, n)
			}
		}
	}
}

// median names the middle of some times, and the least and the most.
func median(ds []time.Duration) string {
	if len(ds) == 0 {
		return "(never)"
	}
	s := slices.Sorted(slices.Values(ds))
	for i := range s {
		s[i] = s[i].Round(10 * time.Millisecond)
	}
	return fmt.Sprintf("%v (median of %d, from %v to %v)", s[len(s)/2], len(s), s[0], s[len(s)-1])
}
