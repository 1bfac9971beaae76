package dispatch

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// TestSecretsFollowTasks: a node is told a secret while a task of its own that
// is to run needs it, and no other node ever is.
func TestSecretsFollowTasks(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, n2 := oneLeader(w)
		w.write(
			store.CreateSecret(&cluster.Secret{ID: "sec", Spec: &swarm.SecretSpec{Data: []byte("one")}}),
			store.CreateConfig(&cluster.Config{ID: "cfg", Spec: &swarm.ConfigSpec{Data: []byte("one")}}),
			store.CreateSecret(&cluster.Secret{ID: "other", Spec: &swarm.SecretSpec{Data: []byte("nobody's")}}),
		)
		w.service("plain", "")
		w.service("web", "")
		web := *w.store.View().Service("web")
		spec := *web.Spec
		spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{
			Image:   "busybox:1",
			Secrets: []*swarm.SecretReference{{SecretID: "sec"}},
			Configs: []*swarm.ConfigReference{{ConfigID: "cfg"}},
		}
		web.Spec = &spec
		w.write(store.UpdateService(&web))
		has := func(when string, n *fakeNode, want bool) {
			t.Helper()
			settle(time.Second)
			sec, cfg := n.item(cluster.ItemSecret, "sec"), n.item(cluster.ItemConfig, "cfg")
			if (sec != nil) != want || (cfg != nil) != want {
				t.Errorf("%s: secret %v, config %v; want them told: %t", when, sec, cfg, want)
			}
			if want && (string(sec.Secret.Spec.Data) != "one" || string(cfg.Config.Spec.Data) != "one") {
				t.Errorf("%s: %+v, %+v", when, sec.Secret, cfg.Config)
			}
			if n.item(cluster.ItemSecret, "other") != nil {
				t.Errorf("%s: a secret that no task refers to was told", when)
			}
		}
		w.task("p", "plain", "w1", "", 1)
		has("no task needs it", n1, false)
		w.task("t1", "web", "w1", "", 1)
		w.task("t2", "web", "w1", "", 2)
		has("two tasks", n1, true)
		has("none here", n2, false)
		w.desire("t1", cluster.StateShutdown)
		has("one is left", n1, true)
		n1.observe("t2", cluster.Status{State: cluster.StateRunning, Serving: true})
		has("it runs", n1, true)
		n1.stop()
		n1 = w.node("w1", worker, "m1:2377")
		has("told anew after a registration", n1, true)
		n1.observe("t2", cluster.Status{State: cluster.StateFailed})
		has("the last has ended", n1, false)
		w.task("t3", "web", "w2", "", 3)
		has("its replacement is elsewhere", n2, true)
		has("not where it was", n1, false)
		w.desire("t3", cluster.StateRemove)
		has("told to go", n2, false)
	})
}
