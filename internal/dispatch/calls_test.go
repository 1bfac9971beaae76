package dispatch

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

func TestJoinByToken(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.addNode("m1", manager)
		w.addNode("m2", manager)
		m1 := w.manager("m1")
		w.manager("m2")
		join := func(token string) (*Issued, error) {
			return JoinSwarm(t.Context(), w.dial, "m2:2377", token, swarm.NodeAvailabilityDrain)
		}
		ca := w.store.View().Cluster().RootCA
		if _, err := join(ca.WorkerToken); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("without a leader: %v", err)
		}
		w.lead(m1)
		for token, role := range map[string]swarm.NodeRole{ca.WorkerToken: worker, ca.ManagerToken: manager} {
			got, err := join(token)
			if err != nil {
				t.Fatal(err)
			}
			id, err := pki.NewIdentity("", got.Root, got.Cert, got.Key)
			if err != nil || id.Peer().Role != role || id.Peer().NodeID != got.NodeID || got.Manager != "m1:2377" {
				t.Errorf("%+v, %v", got, err)
			}
			n := w.store.View().Node(got.NodeID)
			if n == nil || n.Spec.Availability != swarm.NodeAvailabilityDrain || n.Spec.Role != role {
				t.Errorf("the store has %+v", n)
			}
		}
		before := len(w.store.View().Nodes())
		wrong := ca.WorkerToken[:len(ca.WorkerToken)-3] + "aaa"
		start := time.Now()
		_, err := join(wrong)
		if want := "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"; err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("wrong secret: %v", err)
		}
		other := newRootFor(t)
		_, err = join(other)
		tok, _ := pki.ParseToken(other)
		if want := "remote CA does not match fingerprint. Expected: " + tok.Fingerprint(); err == nil || err.Error() != want {
			t.Errorf("another swarm's token: %v", err)
		}
		if _, err = join("foo"); err == nil || err.Error() != "invalid join token" {
			t.Errorf("no token: %v", err)
		}
		// Rotated away.
		c := *w.store.View().Cluster()
		c.RootCA.WorkerToken = pki.NewToken(w.root)
		w.write(store.PutCluster(&c))
		if _, err = join(ca.WorkerToken); !errdefs.IsInvalidArgument(err) {
			t.Errorf("rotated-out token: %v", err)
		}
		if d := time.Since(start); d > time.Second || len(w.store.View().Nodes()) != before {
			t.Errorf("refused after %v, %d nodes more", d, len(w.store.View().Nodes())-before)
		}
	})
}

func newRootFor(t *testing.T) string {
	t.Helper()
	r, err := pki.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pki.NewToken(r)
}

func TestRenewal(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.addNode("m1", manager)
		w.addNode("w1", worker)
		w.lead(w.manager("m1"))
		id := w.identity("w1", worker, time.Hour)
		n := w.nodeAs(id, "m1:2377")
		settle(2 * time.Hour) // now it has ended
		if w.state("w1") != swarm.NodeStateReady {
			t.Error("a session should outlive its certificate")
		}
		node := *w.store.View().Node("w1")
		node.Spec = &swarm.NodeSpec{Role: manager, Availability: "active"}
		w.write(store.UpdateNode(&node))
		settle(time.Second)
		if n.told().Role != manager {
			t.Errorf("the node was told to be a %v", n.told().Role)
		}
		csr, key, err := pki.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := n.client.Renew(t.Context(), csr)
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Replace(cert, key); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if r := w.store.View().Node("w1").Role; r != manager {
			t.Errorf("registered as %v", r)
		}
		// An expired certificate is good for nothing but a new one.
		old := w.nodeAs(w.identity("w1", worker, time.Hour), "m1:2377")
		old.stop()
		ended := w.identity("w1", worker, time.Hour)
		time.Sleep(2 * time.Hour)
		late := w.nodeAs(ended, "m1:2377")
		settle(time.Second)
		if _, err := late.client.Attach(t.Context(), AttachRequest{Network: "x"}); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("an expired certificate was taken: %v", err)
		}
		if _, err := late.client.Renew(t.Context(), csr); err != nil {
			t.Errorf("late renewal: %v", err)
		}
	})
}

func TestRaftMembership(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.addNode("m1", manager)
		w.addNode("w1", worker)
		w.write(store.CreateNode(&cluster.Node{ID: "127.0.0.2", Spec: &swarm.NodeSpec{Role: manager}}))
		w.lead(w.manager("m1"))
		w.manager("127.0.0.2")
		joiner := w.node("127.0.0.2", manager, "m1:2377")
		plain := w.node("w1", worker, "m1:2377")
		settle(time.Second)
		if err := joiner.client.JoinRaft(t.Context(), "127.0.0.9:2377"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("an address nobody answers at: %v", err)
		}
		if err := joiner.client.JoinRaft(t.Context(), "0.0.0.0:2377"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("no address: %v", err)
		}
		if err := plain.client.JoinRaft(t.Context(), "127.0.0.2:2377"); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("a worker: %v", err)
		}
		if err := joiner.client.JoinRaft(t.Context(), "127.0.0.2:2377"); err != nil {
			t.Fatal(err)
		}
		if n := w.store.View().Node("127.0.0.2"); n.Manager == nil || w.votes()["127.0.0.2"] != "127.0.0.2:2377" {
			t.Errorf("%+v, voters %v", n.Manager, w.votes())
		}
		if err := joiner.client.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		n := w.store.View().Node("127.0.0.2")
		if n.Manager != nil || n.Spec.Role != worker || n.Status.State != swarm.NodeStateDown && n.Status.State != swarm.NodeStateReady || len(w.votes()) != 0 {
			t.Errorf("%+v %v, voters %v", n, n.Spec.Role, w.votes())
		}
	})
}

func TestForward(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.addNode("m1", manager)
		w.addNode("m2", manager)
		m1, m2 := w.manager("m1"), w.manager("m2")
		start := time.Now()
		if _, err := m2.Forward(t.Context(), "x", nil); !errors.Is(err, ErrNoLeader) || time.Since(start) > 5*time.Second {
			t.Errorf("without a leader: %v after %v", err, time.Since(start))
		}
		w.lead(m1)
		synctest.Wait()
		for _, m := range []*Server{m1, m2} {
			if b, err := m.Forward(t.Context(), "create", []byte("web")); err != nil || string(b) != "create:web" {
				t.Errorf("%q, %v", b, err)
			}
			if _, err := m.Forward(t.Context(), "fail", []byte("web")); !errdefs.IsNotFound(err) || err.Error() != "service web not found" {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestStreams(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		m1, _, _ := oneLeader(w)
		w.addNode("m2", manager)
		m2 := w.manager("m2")
		read := func(s *Server, node string, words ...string) (string, error) {
			f, err := s.Open(t.Context(), node, "echo", words)
			if err != nil {
				return "", err
			}
			defer f.Close()
			var out []string
			for {
				b, err := f.Next()
				if errors.Is(err, io.EOF) {
					return strings.Join(out, " "), nil
				}
				if err != nil {
					return strings.Join(out, " "), err
				}
				out = append(out, string(b))
			}
		}
		for _, s := range []*Server{m1, m2} {
			if got, err := read(s, "w2", "a", "b", "c"); err != nil || got != "a b c" {
				t.Errorf("%q, %v", got, err)
			}
			if got, err := read(s, "w2", "a", "fail"); got != "a" || !errdefs.IsNotFound(err) || err.Error() != "No such container: x" {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := read(s, "w7"); !errdefs.IsUnavailable(err) {
				t.Errorf("no such node: %v", err)
			}
		}
	})
}

func TestAttach(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		_, n1, _ := oneLeader(w)
		w.network("net", false)
		w.network("ing", true)
		if _, err := n1.client.Attach(t.Context(), AttachRequest{Network: "ing"}); !errors.Is(err, errdefs.ErrPermissionDenied) || err.Error() != "network ing not manually attachable" {
			t.Errorf("%v", err)
		}
		if _, err := n1.client.Attach(t.Context(), AttachRequest{Network: "nope"}); !errdefs.IsNotFound(err) {
			t.Errorf("%v", err)
		}
		w.run(func(ctx context.Context) error { // stands in for the allocator
			changed, stop := w.store.Watch(store.KindTask)
			defer stop()
			for {
				for _, task := range w.store.View().Tasks() {
					if task.Attach != nil && len(task.Networks) == 0 {
						next := *task
						next.Networks = []cluster.Attachment{{NetworkID: "net", Addr: netip.MustParseAddr("10.0.1.77")}}
						if err := w.Propose(ctx, store.UpdateTask(&next)); err != nil {
							return err
						}
					}
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return nil
				}
			}
		})
		rep, err := n1.client.Attach(t.Context(), AttachRequest{Network: "net", ContainerID: "c1", Names: []string{"box"}})
		if err != nil || rep.Addr.String() != "10.0.1.77" || rep.NetworkID != "net" {
			t.Fatalf("%+v, %v", rep, err)
		}
		settle(time.Second)
		e := n1.item(cluster.ItemEndpoint, "net/"+rep.TaskID)
		if e == nil || !e.Endpoint.Serving || !slices.Equal(e.Endpoint.Names, []string{"box"}) || n1.item(cluster.ItemNetwork, "net") == nil {
			t.Errorf("the node was told %v", n1.keys())
		}
		if n1.item(cluster.ItemTask, rep.TaskID) != nil {
			t.Error("the agent was given a plain container")
		}
		if err := n1.client.Detach(t.Context(), rep.TaskID); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if len(n1.keys()) != 0 {
			t.Errorf("left over: %v", n1.keys())
		}
	})
}
