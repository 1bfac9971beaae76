package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/agent/agenttest"
	"github.com/skep-dev/skep/internal/cluster"
)

func TestFakeConforms(t *testing.T) {
	rt := agenttest.New("image")
	agenttest.Conform(t, rt, "image", func(id string, code int) { rt.Exit("conform-a", code) })
}

// node is an agent on a fake host, inside a bubble of fake time.
type node struct {
	t    *testing.T
	dir  string
	rt   *agenttest.Runtime
	net  *agenttest.Network
	a    *agent.Agent
	stop func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), rt: agenttest.New("image:1"), net: &agenttest.Network{}}
	n.boot()
	return n
}

func (n *node) boot() {
	n.a = agent.New(agent.Config{
		Dir: filepath.Join(n.dir, "data"), RunDir: filepath.Join(n.dir, "run"), Runtime: n.rt, Network: n.net, NodeID: "node1",
		Description: swarm.NodeDescription{Hostname: "worker1", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"}},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.a.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	}
}

// task returns a wanted task; change may make it another one.
func task(id string, desired cluster.State, change ...func(*cluster.WantedTask)) cluster.Item {
	t := &cluster.WantedTask{
		ID: id, Name: "web.1." + id, ServiceID: "svc", ServiceName: "web", ServiceLabels: map[string]string{"tier": "front"},
		Slot: 1, NodeID: "node1", Desired: desired, Spec: &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "image:1"}},
	}
	for _, c := range change {
		c(t)
	}
	return cluster.Item{Kind: cluster.ItemTask, ID: id, Task: t}
}

func (n *node) assign(complete bool, items ...cluster.Item) {
	n.t.Helper()
	if err := n.a.Assign(context.Background(), complete, items); err != nil {
		n.t.Fatal(err)
	}
	synctest.Wait()
}

func (n *node) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// is checks a task's state, whether it serves, and its error.
func (n *node) is(id string, state cluster.State, serving bool, err string) cluster.Status {
	n.t.Helper()
	st, ok := n.a.Statuses()[id]
	if !ok || st.State != state || st.Serving != serving || st.Err != err {
		n.t.Errorf("task %s: %v serving %v err %q (known: %v), want %v %v %q", id, st.State, st.Serving, st.Err, ok, state, serving, err)
	}
	return st
}

func bubble(t *testing.T, f func(t *testing.T, n *node)) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		f(t, n)
		n.stop()
	})
}

func TestLifeOfATask(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.Delay("create", 2*time.Second)
		n.rt.Delay("start", 3*time.Second)
		n.assign(true, task("t1", cluster.StateRunning))
		if st := n.is("t1", cluster.StatePreparing, false, ""); st.Message != "preparing" {
			t.Errorf("message %q", st.Message)
		}
		n.after(2 * time.Second)
		if st := n.is("t1", cluster.StateStarting, false, ""); st.Message != "starting" || st.ContainerID == "" {
			t.Errorf("%+v", st)
		}
		n.after(3 * time.Second)
		if st := n.is("t1", cluster.StateRunning, true, ""); st.Message != "started" || st.PID == 0 || st.At.IsZero() {
			t.Errorf("%+v", st)
		}
		n.rt.Gone("web.1.t1") // nobody may be sent to it while it is cleared away
		synctest.Wait()
		n.is("t1", cluster.StateRunning, false, "")
		n.rt.Exit("web.1.t1", 137)
		synctest.Wait()
		if st := n.is("t1", cluster.StateFailed, false, "task: non-zero exit (137)"); st.ExitCode != 137 || st.Message != "started" {
			t.Errorf("%+v", st)
		}
		if _, _, ok := n.rt.Container("web.1.t1"); !ok {
			t.Error("the container went before the manager forgot the task")
		}
		n.assign(false, cluster.Item{Kind: cluster.ItemTask, ID: "t1"})
		if _, _, ok := n.rt.Container("web.1.t1"); ok {
			t.Error("the container outlives the task")
		}
		if got := n.a.Statuses(); len(got) != 0 {
			t.Errorf("%v", got)
		}
		if left, _ := filepath.Glob(filepath.Join(n.dir, "data", "tasks", "*")); len(left) != 0 {
			t.Errorf("left on disk: %v", left)
		}
	})
}

func TestReadyWaits(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateReady))
		n.after(time.Hour)
		if st := n.is("t1", cluster.StateReady, false, ""); st.Message != "prepared" {
			t.Errorf("%+v", st)
		}
		n.assign(false, task("t1", cluster.StateRunning))
		n.is("t1", cluster.StateRunning, true, "")
	})
}

func TestJobCompletes(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateComplete))
		n.is("t1", cluster.StateRunning, true, "")
		n.rt.Exit("web.1.t1", 0)
		synctest.Wait()
		if st := n.is("t1", cluster.StateComplete, false, ""); st.Message != "finished" {
			t.Errorf("%+v", st)
		}
	})
}

func TestShutdownKeepsTheContainer(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.IgnoreStop()
		grace := 30 * time.Second
		with := func(w *cluster.WantedTask) { w.Spec.ContainerSpec.StopGracePeriod = &grace }
		n.assign(true, task("t1", cluster.StateRunning, with))
		n.assign(false, task("t1", cluster.StateShutdown, with))
		n.after(29 * time.Second)
		n.is("t1", cluster.StateRunning, true, "")
		n.after(time.Second)
		if st := n.is("t1", cluster.StateShutdown, false, ""); st.ExitCode != 137 || st.Message != "shutdown" {
			t.Errorf("%+v", st)
		}
		if c, _, ok := n.rt.Container("web.1.t1"); !ok || c.State != container.StateExited {
			t.Errorf("%+v", c)
		}
		n.assign(true) // a complete set without it
		if _, _, ok := n.rt.Container("web.1.t1"); ok {
			t.Error("the container outlives the task")
		}
	})
}

func TestRemoveEndsAndRemoves(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning))
		n.assign(false, task("t1", cluster.StateRemove))
		n.is("t1", cluster.StateShutdown, false, "")
		if _, _, ok := n.rt.Container("web.1.t1"); ok {
			t.Error("the container is still there")
		}
	})
}

func TestChangeOfMindWhilePulling(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.Offer("big:1", nil)
		n.rt.Delay("pull", time.Hour)
		big := func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Image = "big:1" }
		n.assign(true, task("t1", cluster.StateRunning, big))
		if st := n.is("t1", cluster.StatePreparing, false, ""); st.Message != "preparing: pulling big:1: 1MB of 4MB" {
			t.Errorf("%+v", st)
		}
		n.assign(false, task("t1", cluster.StateShutdown, big))
		n.is("t1", cluster.StateShutdown, false, "")
	})
}

func TestPullThatStalls(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.Offer("big:1", nil)
		n.rt.Delay("pull", time.Hour)
		n.assign(true, task("t1", cluster.StateRunning, func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Image = "big:1" }))
		n.after(5 * time.Minute)
		n.is("t1", cluster.StateRejected, false, "No such image: big:1 (pulling big:1: nothing came for 5m0s)")
	})
}

func TestPulledWhenMissing(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.Offer("new:1", nil)
		n.assign(true,
			task("t1", cluster.StateRunning, func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Image = "new:1" }),
			task("t2", cluster.StateRunning), // present: no pull
			task("t3", cluster.StateRunning, func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Image = "none:1" }))
		n.is("t1", cluster.StateRunning, true, "")
		n.is("t2", cluster.StateRunning, true, "")
		n.is("t3", cluster.StateRejected, false, "No such image: none:1 (pull access denied for none:1)")
		if log := n.rt.Log(); slices.Contains(log, "pull image:1") || !slices.Contains(log, "pull new:1") {
			t.Errorf("%v", log)
		}
	})
}

func TestPullWithCredentials(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		auth, err := authconfig.Encode(registry.AuthConfig{Username: "me", Password: "secret"})
		if err != nil {
			t.Fatal(err)
		}
		with := func(image string) func(*cluster.WantedTask) {
			return func(w *cluster.WantedTask) { w.Spec.ContainerSpec.Image, w.RegistryAuth = image, auth }
		}
		n.rt.AddImage("pinned@sha256:1", agent.Image{})
		n.rt.AddImage("moving:1", agent.Image{})
		n.rt.Offer("moving:1", nil)
		n.assign(true, task("t1", cluster.StateRunning, with("image:1")), task("t2", cluster.StateRunning, with("pinned@sha256:1")), task("t3", cluster.StateRunning, with("moving:1")))
		for _, id := range []string{"t1", "t2", "t3"} { // t1's registry does not answer
			n.is(id, cluster.StateRunning, true, "")
		}
		pulls := slices.DeleteFunc(n.rt.Log(), func(l string) bool { return !strings.HasPrefix(l, "pull ") })
		slices.Sort(pulls)
		if diff := cmp.Diff([]string{"pull image:1 as me", "pull moving:1 as me"}, pulls); diff != "" {
			t.Error(diff)
		}
	})
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name, op string
		err      error
		state    cluster.State
		want     string
		passes   bool
	}{
		{"create", "create", cluster.Invalidf(`invalid mount config for type "bind": bind source path does not exist: /x`), cluster.StateRejected, `invalid mount config for type "bind": bind source path does not exist: /x`, false},
		{"start", "start", errors.New("failed to create task"), cluster.StateFailed, "starting container failed: failed to create task", false},
		{"create, passing", "create", cluster.Unavailablef("busy"), cluster.StatePreparing, "busy", true},
		{"start, passing", "start", cluster.Unavailablef("busy"), cluster.StateStarting, "starting container failed: busy", true},
		{"inspect, passing", "inspect", cluster.Unavailablef("busy"), cluster.StatePreparing, "busy", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				n.rt.Fail(c.op, c.err)
				n.assign(true, task("t1", cluster.StateRunning))
				n.after(10 * time.Second)
				n.is("t1", c.state, false, c.want)
				n.rt.Fail(c.op, nil)
				n.after(2 * time.Second)
				if c.passes {
					n.is("t1", cluster.StateRunning, true, "")
				} else {
					n.is("t1", c.state, false, c.want)
				}
			})
		})
	}
}

func TestStopIsTriedUntilItWorks(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning))
		n.rt.Fail("stop", errors.New("shim is stuck"))
		n.assign(false, task("t1", cluster.StateShutdown))
		n.after(5 * time.Second)
		n.is("t1", cluster.StateRunning, true, "shim is stuck")
		n.rt.Fail("stop", nil)
		n.after(time.Second)
		n.is("t1", cluster.StateShutdown, false, "")
	})
}

func healthy(w *cluster.WantedTask) {
	w.Spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}}
}

func TestHealth(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning, healthy))
		n.after(time.Minute)
		if st := n.is("t1", cluster.StateStarting, false, ""); st.PID == 0 {
			t.Errorf("%+v", st)
		}
		n.rt.Health("web.1.t1", container.Healthy)
		synctest.Wait()
		n.is("t1", cluster.StateRunning, true, "")
		n.rt.Delay("stop", 4*time.Second)
		n.rt.Health("web.1.t1", container.Unhealthy)
		synctest.Wait()
		n.is("t1", cluster.StateRunning, false, "") // out of the balancers before it is told to stop
		n.after(4 * time.Second)
		n.is("t1", cluster.StateFailed, false, "task: non-zero exit (143): unhealthy container")
	})
}

func TestUnhealthyFromTheStart(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning, healthy), task("t2", cluster.StateRunning, healthy))
		n.rt.Health("web.1.t1", container.Unhealthy)
		n.rt.Exit("web.1.t2", 1)
		synctest.Wait()
		n.is("t1", cluster.StateFailed, false, "task: non-zero exit (143): unhealthy container")
		n.is("t2", cluster.StateFailed, false, "task: non-zero exit (1)")
	})
}

func TestContainerRemovedByHand(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning))
		if err := n.rt.Remove(context.Background(), "web.1.t1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		st := n.a.Statuses()["t1"]
		if st.State != cluster.StateFailed || !strings.HasPrefix(st.Err, "No such container: ") {
			t.Errorf("%+v", st)
		}
	})
}

func TestNetworksComeFirst(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		net := cluster.Item{Kind: cluster.ItemNetwork, ID: "n1", Network: &cluster.WantedNetwork{ID: "n1", Name: "front", Driver: "overlay"}}
		in := func(w *cluster.WantedTask) { w.Networks = []cluster.Attachment{{NetworkID: "n1"}} }
		n.net.Fail(errors.New("VXLAN is not there"))
		n.assign(true, task("t1", cluster.StateRunning, in), task("t2", cluster.StateRunning), net)
		n.is("t1", cluster.StatePreparing, false, "network front: VXLAN is not there")
		n.is("t2", cluster.StateRunning, true, "") // needs no network
		n.net.Fail(nil)
		n.after(2 * time.Second)
		n.is("t1", cluster.StateRunning, true, "")
		if !n.net.Has(cluster.ItemNetwork, "n1") {
			t.Error("the network was not applied")
		}
		n.assign(false, task("t3", cluster.StateRunning, func(w *cluster.WantedTask) { w.Networks = []cluster.Attachment{{NetworkID: "n2"}} }))
		n.is("t3", cluster.StatePreparing, false, "network n2 is not known to this node yet")
	})
}

func TestRestartOfTheDaemon(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("runs", cluster.StateRunning), task("ends", cluster.StateRunning), task("waits", cluster.StateReady), task("over", cluster.StateShutdown))
		n.stop()
		n.rt.Exit("web.1.ends", 5)
		n.boot()
		synctest.Wait()
		n.is("runs", cluster.StateRunning, true, "")
		n.is("ends", cluster.StateFailed, false, "task: non-zero exit (5)")
		n.is("waits", cluster.StateReady, false, "")
		n.is("over", cluster.StateShutdown, false, "")
		n.rt.Exit("web.1.runs", 0) // watched again
		n.assign(false, task("waits", cluster.StateRunning))
		n.is("runs", cluster.StateComplete, false, "")
		n.is("waits", cluster.StateRunning, true, "")
		var starts int
		for _, l := range n.rt.Log() {
			if strings.HasPrefix(l, "start ") {
				starts++
			}
		}
		if starts != 3 {
			t.Errorf("%d starts: %v", starts, n.rt.Log())
		}
	})
}

func TestRestartInTheMiddle(t *testing.T) {
	for _, op := range []string{"create", "start", "stop"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *node) {
				if op != "stop" {
					n.rt.Delay(op, time.Minute)
				}
				n.assign(true, task("t1", cluster.StateRunning))
				want := cluster.StateRunning
				if op == "stop" {
					n.rt.Delay(op, time.Minute)
					n.assign(false, task("t1", cluster.StateShutdown))
					want = cluster.StateShutdown
				}
				n.after(time.Second)
				n.stop()
				n.rt.Delay(op, 0)
				n.boot()
				synctest.Wait()
				n.is("t1", want, want == cluster.StateRunning, "")
			})
		})
	}
}

func TestBrokenRecordsAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.assign(true, task("t1", cluster.StateRunning))
		n.stop()
		if err := os.WriteFile(filepath.Join(n.dir, "data", "tasks", "bad.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		n.boot()
		synctest.Wait()
		n.is("t1", cluster.StateRunning, true, "")
		n.assign(false, task("../evil", cluster.StateRunning))
		if _, ok := n.a.Statuses()["../evil"]; ok {
			t.Error("an id that is a path was taken")
		}
	})
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.assign(true, task("t1", cluster.StateRunning), task("t2", cluster.StateReady))
		n.stop()
		for range 2 {
			if err := n.a.Leave(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"web.1.t1", "web.1.t2"} {
			if _, _, ok := n.rt.Container(name); ok {
				t.Errorf("%s is still there", name)
			}
		}
		if !n.net.Left {
			t.Error("the networks were not left")
		}
	})
}

func TestSecretsAndConfigs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: secrets' files are given to their owners, which needs root")
	}
	bubble(t, func(t *testing.T, n *node) {
		with := func(w *cluster.WantedTask) {
			w.Spec.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "s1", SecretName: "key", File: &swarm.SecretReferenceFileTarget{Name: "key", UID: "33", GID: "33", Mode: 0o440}}}
			w.Spec.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: "c1", ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "/etc/x.conf", Mode: 0o444}}}
		}
		n.assign(true, task("t1", cluster.StateRunning, with))
		n.is("t1", cluster.StatePreparing, false, "secret key has not reached this node yet")
		n.assign(false,
			cluster.Item{Kind: cluster.ItemSecret, ID: "s1", Secret: &cluster.Secret{ID: "s1", Spec: &swarm.SecretSpec{Data: []byte("hush")}}},
			cluster.Item{Kind: cluster.ItemConfig, ID: "c1", Config: &cluster.Config{ID: "c1", Spec: &swarm.ConfigSpec{Data: []byte("x=1")}}})
		n.after(2 * time.Second)
		n.is("t1", cluster.StateRunning, true, "")
		_, req, _ := n.rt.Container("web.1.t1")
		mounts := req.Request.HostConfig.Mounts
		if len(mounts) != 2 || mounts[0].Target != "/run/secrets/key" || mounts[1].Target != "/etc/x.conf" || !mounts[0].ReadOnly {
			t.Fatalf("%+v", mounts)
		}
		if data, err := os.ReadFile(mounts[0].Source); err != nil || string(data) != "hush" {
			t.Errorf("%q %v", data, err)
		}
		n.assign(false, cluster.Item{Kind: cluster.ItemTask, ID: "t1"})
		if _, err := os.Stat(mounts[0].Source); !os.IsNotExist(err) {
			t.Errorf("the secret is still there: %v", err)
		}
	})
}

func TestAHundredTasks(t *testing.T) {
	bubble(t, func(t *testing.T, n *node) {
		n.rt.Delay("start", time.Second)
		var items []cluster.Item
		for i := range 100 {
			items = append(items, task(cluster.Base36([]byte{byte(i)}, 3), cluster.StateRunning))
		}
		n.assign(true, items...)
		n.after(time.Minute)
		for id, st := range n.a.Statuses() {
			if st.State != cluster.StateRunning {
				t.Errorf("%s: %+v", id, st)
			}
		}
		select {
		case <-n.a.Changed():
		default:
			t.Error("nobody was told")
		}
		if diff := cmp.Diff(100, len(n.a.Statuses())); diff != "" {
			t.Error(diff)
		}
	})
}
