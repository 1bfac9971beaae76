package swarmevents

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

func service(image string, replicas uint64) *swarm.ServiceSpec {
	return &swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "web"},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
}

func TestTheLifeOfAService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		var index uint64
		apply := func(c ...store.Change) {
			t.Helper()
			index++
			if err := st.Apply(index, store.Entry{At: time.Now(), Changes: c}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		var got []events.Message
		var manager atomic.Bool
		w := &Watcher{
			State: func() (*store.Store, error) {
				if !manager.Load() {
					return nil, errors.New("no manager")
				}
				return st, nil
			},
			Publish: func(typ events.Type, action events.Action, actor events.Actor) {
				got = append(got, events.Message{Type: typ, Action: action, Actor: actor})
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()

		time.Sleep(lookAgain * 3 / 2)
		apply(store.CreateNode(&cluster.Node{ID: "n0", Spec: &swarm.NodeSpec{Availability: "active", Role: "worker"}, Description: &swarm.NodeDescription{Hostname: "host"}}))
		time.Sleep(lookAgain) // the node is there before this one is a manager
		manager.Store(true)
		apply(store.CreateService(&cluster.Service{ID: "q0", Spec: &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "quick"}}}))
		time.Sleep(2 * lookAgain)
		synctest.Wait()

		apply(store.CreateService(&cluster.Service{ID: "s0", Spec: service("a:1", 1)}))
		s := *st.View().Service("s0")
		s.Ports = []swarm.PortConfig{{TargetPort: 80}} // the allocator's business
		apply(store.UpdateService(&s))
		s = *st.View().Service("s0")
		s.Spec, s.SpecVersion = service("a:2", 1), s.SpecVersion+1
		apply(store.UpdateService(&s))
		s = *st.View().Service("s0")
		s.Update = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating}
		apply(store.UpdateService(&s))
		s = *st.View().Service("s0")
		s.Update = &swarm.UpdateStatus{State: swarm.UpdateStateCompleted}
		apply(store.UpdateService(&s))
		n := *st.View().Node("n0")
		n.Spec = &swarm.NodeSpec{Availability: "drain", Role: "worker"}
		apply(store.UpdateNode(&n))
		apply(store.CreateSecret(&cluster.Secret{ID: "k0", Spec: &swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key"}}}))
		apply(store.CreateConfig(&cluster.Config{ID: "c0", Spec: &swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf"}}}))
		var snapshot bytes.Buffer // of the same: no news
		if err := st.Freeze().Write(&snapshot); err != nil {
			t.Fatal(err)
		}
		if err := st.Restore(&snapshot); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		conf := *st.View().Config("c0")
		conf.Spec = &swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf", Labels: map[string]string{"a": "b"}}}
		apply(store.UpdateConfig(&conf))
		apply(store.DeleteService(st.View().Service("s0")))

		web := func(action events.Action, attrs map[string]string) events.Message {
			attrs["name"] = "web"
			return events.Message{Type: "service", Action: action, Actor: events.Actor{ID: "s0", Attributes: attrs}}
		}
		want := []events.Message{
			{Type: "service", Action: "create", Actor: events.Actor{ID: "q0", Attributes: map[string]string{"name": "quick"}}},
			web("create", map[string]string{}),
			web("update", map[string]string{"image.new": "a:2", "image.old": "a:1"}),
			web("update", map[string]string{"updatestate.new": "updating"}),
			web("update", map[string]string{"updatestate.new": "completed", "updatestate.old": "updating"}),
			{Type: "node", Action: "update", Actor: events.Actor{ID: "n0", Attributes: map[string]string{
				"name": "host", "availability.new": "drain", "availability.old": "active"}}},
			{Type: "secret", Action: "create", Actor: events.Actor{ID: "k0", Attributes: map[string]string{"name": "key"}}},
			{Type: "config", Action: "create", Actor: events.Actor{ID: "c0", Attributes: map[string]string{"name": "conf"}}},
			{Type: "config", Action: "update", Actor: events.Actor{ID: "c0", Attributes: map[string]string{"name": "conf"}}},
			web("remove", map[string]string{}),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestANewSwarm: a swarm that this node begins is watched from its first moment,
// also right after another was left.
func TestANewSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cur atomic.Pointer[store.Store]
		var got []string
		woken := make(chan struct{}, 1)
		w := &Watcher{Woken: woken, State: func() (*store.Store, error) {
			if st := cur.Load(); st != nil {
				return st, nil
			}
			return nil, errors.New("no manager")
		}, Publish: func(typ events.Type, action events.Action, actor events.Actor) {
			got = append(got, string(typ)+" "+string(action)+" "+actor.Attributes["name"])
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		time.Sleep(lookAgain * 5 / 4)
		for range 2 {
			st := store.New()
			cur.Store(st)
			select {
			case woken <- struct{}{}:
			default:
			}
			synctest.Wait()
			var index uint64
			apply := func(c store.Change) {
				t.Helper()
				index++
				if err := st.Apply(index, store.Entry{At: time.Now(), Changes: []store.Change{c}}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			apply(store.CreateConfig(&cluster.Config{ID: "c0", Spec: &swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf"}}}))
			apply(store.DeleteConfig(st.View().Config("c0")))
			net := &cluster.Network{ID: "n0", Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "later"}}}
			apply(store.CreateNetwork(net))
			n := *st.View().Network("n0")
			n.Subnet = netip.MustParsePrefix("10.0.1.0/24")
			apply(store.UpdateNetwork(&n))
			apply(store.CreateNetwork(&cluster.Network{
				ID: "n1", Spec: &swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "at once"}}, Subnet: netip.MustParsePrefix("10.0.2.0/24"),
			}))
			time.Sleep(lookAgain / 10)
		}
		once := []string{"config create conf", "config remove conf", "network create later", "network update later",
			"network create at once", "network update at once"}
		if d := cmp.Diff(append(once, once...), got); d != "" {
			t.Error(d)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
