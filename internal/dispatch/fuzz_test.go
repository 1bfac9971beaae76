package dispatch

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc/mem"

	"github.com/skep-dev/skep/internal/cluster"
)

// FuzzMessages feeds anything to the decoders of what the other end sends: they
// return an error or a message that can be dealt with, and never panic.
func FuzzMessages(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []any{
		&up{Hello: &Hello{Description: &swarm.NodeDescription{Hostname: "h"}}, Beat: 1},
		&up{Statuses: []TaskStatus{{ID: "t", Status: cluster.Status{State: cluster.StateRunning}}}},
		&down{Assign: &assignment{Version: 1, Items: []*wireItem{{Kind: cluster.ItemTask, ID: "t", Body: []byte{0xa0}}}}},
		&frame{Stream: "s", Data: []byte("x"), Err: &failed{Kind: "not-found", Text: "x"}},
		&IssueRequest{CSR: []byte("x"), Token: "SWMTKN"},
	} {
		b, err := c.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b.Materialize())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		data := mem.BufferSlice{mem.SliceBuffer(b)}
		u := new(up)
		if c.Unmarshal(data, u) == nil {
			for _, ts := range u.Statuses {
				if st := ts.Status; checkStatus(&st) == nil && (st.State.API() == "" || len(st.Err) > maxText) {
					t.Errorf("a bad status was taken: %+v", st)
				}
			}
		}
		d := new(down)
		if c.Unmarshal(data, d) == nil && d.Assign != nil {
			s := &clientSession{got: make(chan struct{}, 1)}
			if s.assigned(d.Assign) == nil && s.partial == nil {
				_, _ = c.items(d.Assign.Items)
			}
		}
		for _, m := range []any{new(frame), new(IssueRequest), new(IssueReply), new(JoinRequest), new(AttachRequest), new(forwardRequest), new(forwardReply), new(watchRequest)} {
			_ = c.Unmarshal(data, m)
		}
	})
}

// TestItemsSurviveTheWire sends one item of each kind.
func TestItemsSurviveTheWire(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	replicas := uint64(3)
	want := []cluster.Item{
		{Kind: cluster.ItemTask, ID: "t", Task: &cluster.WantedTask{ID: "t", Name: "web.1.t", Desired: cluster.StateRunning,
			Spec: &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "x", Env: []string{"A=b"}}, RestartPolicy: &swarm.RestartPolicy{MaxAttempts: &replicas}}}},
		{Kind: cluster.ItemNetwork, ID: "n", Network: &cluster.WantedNetwork{ID: "n", Options: map[string]string{"a": "b"}}},
		{Kind: cluster.ItemPeer, ID: "n/x", Peer: &cluster.Peer{NetworkID: "n", NodeID: "x"}},
		{Kind: cluster.ItemEndpoint, ID: "n/t", Endpoint: &cluster.Endpoint{NetworkID: "n", TaskID: "t", Names: []string{"a"}, Serving: true}},
		{Kind: cluster.ItemService, ID: "n/s", Service: &cluster.VirtualService{NetworkID: "n", ServiceID: "s", Ports: []swarm.PortConfig{{TargetPort: 80}}}},
		{Kind: cluster.ItemSecret, ID: "s", Secret: &cluster.Secret{ID: "s", Spec: &swarm.SecretSpec{Data: []byte{0, 1, 2}}}},
		{Kind: cluster.ItemConfig, ID: "c", Config: &cluster.Config{ID: "c", Spec: &swarm.ConfigSpec{Data: []byte("x")}}},
		{Kind: cluster.ItemTask, ID: "gone"},
	}
	var wire []*wireItem
	for _, it := range want {
		var body []byte
		for _, v := range []any{it.Task, it.Network, it.Peer, it.Endpoint, it.Service, it.Secret, it.Config} {
			b, err := c.enc.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, []byte{0xf6}) {
				body = b
			}
		}
		wire = append(wire, &wireItem{Kind: it.Kind, ID: it.ID, Body: body})
	}
	b, err := c.Marshal(&assignment{Items: wire})
	if err != nil {
		t.Fatal(err)
	}
	a := new(assignment)
	if err := c.Unmarshal(b, a); err != nil {
		t.Fatal(err)
	}
	got, err := c.items(a.Items)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
