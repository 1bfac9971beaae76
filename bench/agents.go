package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/pki"
)

// crowd is many nodes without hosts, in this process: each has its own identity,
// issued against the join token, and its own session with the leader, over its
// own connection, by the code that real nodes use. They do not gossip, and in
// place of an engine they say at once that a task runs.
type crowd struct {
	nodes []*fakeNode
	end   context.CancelFunc
	wg    sync.WaitGroup
}

// fakeNode is one of them, and its own dispatch.Agent.
type fakeNode struct {
	client  *dispatch.Client
	changed chan struct{} // capacity 1

	connected atomic.Bool  // it is registered with a leader
	lost      atomic.Int64 // sessions that ended or could not be had
	why       atomic.Value // of the last of these: a string
	complete  atomic.Int64 // complete sets it was told, one a session

	mu       sync.Mutex
	statuses map[string]cluster.Status
}

// joinCrowd has n nodes join the swarm of the manager at addr, some at a time, and
// waits until each has its session.
func joinCrowd(ctx context.Context, addr, token string, n int) (*crowd, error) {
	run, end := context.WithCancel(context.Background())
	c := &crowd{nodes: make([]*fakeNode, n), end: end}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			node, err := joinFake(ctx, addr, token, i)
			if err != nil {
				return fmt.Errorf("node %d: %w", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			c.nodes[i] = node
			c.wg.Go(func() { _ = node.client.Run(run) }) // it ends with run, and never before
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		err = await(context.WithoutCancel(ctx), "all sessions", 20*time.Millisecond, func() (bool, error) { return c.connected() == n, nil })
	}
	if err != nil {
		lost, why := c.lost()
		c.leave()
		return nil, fmt.Errorf("%w; %d sessions were lost: %s", err, lost, why)
	}
	return c, nil
}

// leave ends all sessions.
func (c *crowd) leave() {
	c.end()
	c.wg.Wait()
}

// connected counts the nodes that are registered with a leader.
func (c *crowd) connected() (n int) {
	for _, f := range c.nodes {
		if f != nil && f.connected.Load() {
			n++
		}
	}
	return n
}

// sessions returns how many sessions each node has had.
func (c *crowd) sessions() (all []int64) {
	for _, f := range c.nodes {
		all = append(all, f.complete.Load())
	}
	return all
}

// told counts the nodes that have been told all anew since they had had so many
// sessions.
func (c *crowd) told(before []int64) (n int) {
	for i, f := range c.nodes {
		if f.complete.Load() > before[i] {
			n++
		}
	}
	return n
}

// gossip has every node make sure that its manager answers, as when gossip has
// given it up, which it does not on all nodes at once: it begins after a while
// and spreads for a while.
func (c *crowd) gossip(after, spread time.Duration) {
	for i, f := range c.nodes {
		time.AfterFunc(after+spread*time.Duration(i)/time.Duration(len(c.nodes)), f.client.Check)
	}
}

// lost counts the sessions that ended, or could not be had, with the commonest
// reasons.
func (c *crowd) lost() (n int64, why string) {
	whys := map[string]int{}
	for _, f := range c.nodes {
		if f == nil {
			continue
		}
		n += f.lost.Load()
		if s, ok := f.why.Load().(string); ok {
			whys[s]++
		}
	}
	often := slices.SortedFunc(maps.Keys(whys), func(a, b string) int { return whys[b] - whys[a] })
	for _, s := range often[:min(len(often), 5)] {
		why += fmt.Sprintf("\n%5d × %s", whys[s], s)
	}
	return n, why
}

// tasks counts the tasks that nodes have, in any state.
func (c *crowd) tasks() (n int) {
	for _, f := range c.nodes {
		f.mu.Lock()
		n += len(f.statuses)
		f.mu.Unlock()
	}
	return n
}

func joinFake(ctx context.Context, addr, token string, i int) (*fakeNode, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	got, err := dispatch.JoinSwarm(ctx, dispatch.DialTCP, addr, token, swarm.NodeAvailabilityActive)
	for err != nil && ctx.Err() == nil { // a busy machine's handshakes time out
		got, err = dispatch.JoinSwarm(ctx, dispatch.DialTCP, addr, token, swarm.NodeAvailabilityActive)
	}
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity("", got.Root, got.Cert, got.Key)
	if err != nil {
		return nil, err
	}
	f := &fakeNode{changed: make(chan struct{}, 1), statuses: map[string]cluster.Status{}}
	hello := fakeHello(i, got.Root)
	f.client, err = dispatch.NewClient(dispatch.ClientConfig{
		Identity: id, Agent: f, Hello: func() dispatch.Hello { return hello },
		Managers:  []dispatch.Manager{{Addr: got.Manager}},
		OnSession: func(dispatch.Session) {}, OnConnect: f.noted,
		Dial: dispatch.DialTCP, Log: slog.New(slog.DiscardHandler),
	})
	return f, err
}

// noted notes that the node has its session, or why not.
func (f *fakeNode) noted(err error) {
	f.connected.Store(err == nil)
	if err != nil {
		f.lost.Add(1)
		f.why.Store(err.Error())
	}
}

// fakeHello describes node i as long-windedly as a real one does. Its address is
// one that no packet leaves this machine for.
func fakeHello(i int, root *pki.Root) dispatch.Hello {
	at := netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
	d := &swarm.NodeDescription{
		Hostname:  fmt.Sprintf("fake-%05d", i),
		Platform:  swarm.Platform{Architecture: map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH], OS: "linux"},
		Resources: swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30},
		Engine:    swarm.EngineDescription{EngineVersion: "bench"},
		TLSInfo: swarm.TLSInfo{TrustRoot: string(root.CertPEM()), CertIssuerSubject: root.Certificate().RawSubject,
			CertIssuerPublicKey: root.Certificate().RawSubjectPublicKeyInfo},
	}
	for _, p := range [][2]string{{"Log", "json-file"}, {"Log", "local"}, {"Network", "bridge"}, {"Network", "host"}, {"Network", "null"},
		{"Network", "overlay"}, {"Volume", "local"}} {
		d.Engine.Plugins = append(d.Engine.Plugins, swarm.PluginDescription{Type: p[0], Name: p[1]})
	}
	return dispatch.Hello{Description: d, Addr: at, DataAddr: at}
}

// Assign runs what is wanted, and stops what is not.
func (f *fakeNode) Assign(_ context.Context, complete bool, items []cluster.Item) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if complete {
		f.complete.Add(1)
	}
	named, changed := map[string]bool{}, false
	for _, it := range items {
		if it.Kind == cluster.ItemTask {
			named[it.ID] = true
			changed = f.follow(it.ID, it.Task) || changed
		}
	}
	if complete {
		maps.DeleteFunc(f.statuses, func(id string, _ cluster.Status) bool { return !named[id] })
	}
	if changed {
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// follow does what is wanted of one task and reports whether its status changed.
func (f *fakeNode) follow(id string, t *cluster.WantedTask) bool {
	if t == nil {
		delete(f.statuses, id)
		return false
	}
	st := f.statuses[id]
	switch {
	case t.Desired <= cluster.StateRunning && st.State < t.Desired:
		sum := sha256.Sum256([]byte(id))
		st = cluster.Status{State: t.Desired, Message: "started", ContainerID: hex.EncodeToString(sum[:])}
		if t.Desired == cluster.StateRunning {
			st.PID, st.Serving = 1+int(sum[0])<<8, true
		}
	case t.Desired > cluster.StateRunning && st.State <= cluster.StateRunning:
		st.State, st.Message, st.PID, st.Serving = cluster.StateShutdown, "shutdown", 0, false
	default:
		return false
	}
	st.At = time.Now()
	f.statuses[id] = st
	return true
}

// Statuses returns what the node says of its tasks.
func (f *fakeNode) Statuses() map[string]cluster.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.statuses)
}

// Changed signals after each change of Statuses.
func (f *fakeNode) Changed() <-chan struct{} { return f.changed }
