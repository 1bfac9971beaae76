// Package agenttest holds a container runtime in memory and the tests that it
// and a real host both pass, so that simulations cannot drift from the truth.
// agent's tests use it; no program does.
package agenttest

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// Runtime is an agent.Runtime without processes: containers run until Exit or
// Stop. All it does takes no time unless Delay says otherwise.
type Runtime struct {
	mu      sync.Mutex
	images  map[string]agent.Image
	pulls   map[string]error // what a registry answers; absent: denied
	byID    map[string]*fakeContainer
	byName  map[string]*fakeContainer
	delay   map[string]time.Duration
	failing map[string]error
	log     []string
	wake    chan struct{} // closed and replaced at each change
	made    int
	ignores bool
}

type fakeContainer struct {
	agent.Container
	name  string
	image string
	req   engine.CreateRequest
}

// New returns a host with these images.
func New(images ...string) *Runtime {
	r := &Runtime{
		images: map[string]agent.Image{}, pulls: map[string]error{}, byID: map[string]*fakeContainer{}, byName: map[string]*fakeContainer{},
		delay: map[string]time.Duration{}, failing: map[string]error{}, wake: make(chan struct{}),
	}
	for _, i := range images {
		r.images[i] = agent.Image{}
	}
	return r
}

func (r *Runtime) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.wake)
	r.wake = make(chan struct{})
}

// AddImage puts an image on the host.
func (r *Runtime) AddImage(ref string, img agent.Image) { r.change(func() { r.images[ref] = img }) }

// Offer lets a registry have ref; with an error it answers that.
func (r *Runtime) Offer(ref string, err error) { r.change(func() { r.pulls[ref] = err }) }

// Delay makes an operation (pull, create, start, stop) take that long.
func (r *Runtime) Delay(op string, d time.Duration) { r.change(func() { r.delay[op] = d }) }

// Fail makes an operation (inspect, create, start, stop, remove) fail; nil: work again.
func (r *Runtime) Fail(op string, err error) { r.change(func() { r.failing[op] = err }) }

// IgnoreStop makes containers end at the end of their grace period only.
func (r *Runtime) IgnoreStop() { r.change(func() { r.ignores = true }) }

// Exit ends a container.
func (r *Runtime) Exit(name string, code int) {
	r.change(func() {
		if c := r.byName[name]; c != nil {
			c.State, c.ExitCode, c.PID = container.StateExited, code, 0
		}
	})
}

// Gone ends a container's process; what it held is not given back yet.
func (r *Runtime) Gone(name string) {
	r.change(func() {
		if c := r.byName[name]; c != nil {
			c.Container.Gone = true
		}
	})
}

// Health sets what a container's health check finds.
func (r *Runtime) Health(name string, h container.HealthStatus) {
	r.change(func() {
		if c := r.byName[name]; c != nil {
			c.Container.Health = h
		}
	})
}

// Container returns a container by name, and what it was made from.
func (r *Runtime) Container(name string) (agent.Container, engine.CreateRequest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byName[name]
	if c == nil {
		return agent.Container{}, engine.CreateRequest{}, false
	}
	return c.Container, c.req, true
}

// Log returns the operations done, in order: "pull nginx", "start web.1.x" ….
func (r *Runtime) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

// begin logs an operation, waits as long as it takes, and says how it fails.
func (r *Runtime) begin(ctx context.Context, op, what string) error {
	r.mu.Lock()
	r.log = append(r.log, op+" "+what)
	d, err := r.delay[op], r.failing[op]
	r.mu.Unlock()
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err != nil {
		return err
	}
	return ctx.Err()
}

func (r *Runtime) find(ref string) (*fakeContainer, error) {
	if c := r.byID[ref]; c != nil {
		return c, nil
	}
	if c := r.byName[ref]; c != nil {
		return c, nil
	}
	return nil, cluster.NotFoundf("No such container: %s", ref)
}

// Image implements agent.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (agent.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	img, ok := r.images[ref]
	if !ok {
		return img, cluster.NotFoundf("No such image: %s", ref)
	}
	return img, nil
}

// Pull implements agent.Runtime.
func (r *Runtime) Pull(ctx context.Context, ref string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error {
	progress(jsonstream.Message{ID: "layer", Status: "Downloading", Progress: &jsonstream.Progress{Current: 1e6, Total: 4e6}})
	what := ref
	if auth != nil {
		what += " as " + auth.Username
	}
	if err := r.begin(ctx, "pull", what); err != nil {
		return err
	}
	r.mu.Lock()
	err, ok := r.pulls[ref]
	r.mu.Unlock()
	if !ok {
		err = cluster.NotFoundf("pull access denied for %s", ref)
	}
	if err == nil {
		r.AddImage(ref, agent.Image{})
	}
	return err
}

// Create implements agent.Runtime.
func (r *Runtime) Create(ctx context.Context, req engine.CreateRequest) (string, error) {
	if err := r.begin(ctx, "create", req.Name); err != nil {
		return "", err
	}
	if _, err := r.Image(ctx, req.Request.Image); err != nil {
		return "", err
	}
	var id string
	var err error
	r.change(func() {
		if old := r.byName[req.Name]; old != nil {
			err = cluster.Conflictf("Conflict. The container name %q is already in use by container %q.", "/"+req.Name, old.ID)
			return
		}
		r.made++
		id = fmt.Sprintf("%064x", r.made)
		c := &fakeContainer{name: req.Name, image: req.Request.Image, req: req}
		c.ID, c.State, c.Labels = id, container.StateCreated, maps.Clone(req.Request.Labels)
		r.byID[id], r.byName[req.Name] = c, c
	})
	return id, err
}

// Inspect implements agent.Runtime.
func (r *Runtime) Inspect(ctx context.Context, ref string) (agent.Container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failing["inspect"]; err != nil {
		return agent.Container{}, err
	}
	c, err := r.find(ref)
	if err != nil {
		return agent.Container{}, err
	}
	return c.Container, nil
}

// Start implements agent.Runtime.
func (r *Runtime) Start(ctx context.Context, ref string) error {
	r.mu.Lock()
	c, err := r.find(ref)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := r.begin(ctx, "start", c.name); err != nil {
		return err
	}
	r.change(func() {
		if c.State == container.StateRunning {
			return
		}
		c.State, c.PID = container.StateRunning, 1000+r.made
		if h := c.req.Request.Healthcheck; h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" {
			c.Container.Health = container.Starting
		}
		c.Ports = network.PortMap{}
		for port, bindings := range c.req.Request.HostConfig.PortBindings {
			for i, b := range bindings {
				if b.HostPort == "" {
					b.HostPort = fmt.Sprint(40000 + i)
				}
				c.Ports[port] = append(c.Ports[port], b)
			}
		}
	})
	return nil
}

// Stop implements agent.Runtime.
func (r *Runtime) Stop(ctx context.Context, ref string, timeout *int) error {
	r.mu.Lock()
	c, err := r.find(ref)
	ignores := r.ignores
	r.mu.Unlock()
	if err != nil {
		return err
	}
	r.mu.Lock()
	running := c.State == container.StateRunning
	r.mu.Unlock()
	if !running {
		return nil
	}
	if err := r.begin(ctx, "stop", c.name); err != nil {
		return err
	}
	code := 143
	if ignores {
		grace := 10 * time.Second
		if timeout != nil {
			grace = time.Duration(*timeout) * time.Second
		}
		code = 137
		select {
		case <-time.After(grace):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.Exit(c.name, code)
	return nil
}

// Remove implements agent.Runtime.
func (r *Runtime) Remove(ctx context.Context, ref string) error {
	r.mu.Lock()
	c, err := r.find(ref)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := r.begin(ctx, "remove", c.name); err != nil {
		return err
	}
	r.change(func() {
		c.State = container.StateDead
		delete(r.byID, c.ID)
		delete(r.byName, c.name)
	})
	return nil
}

// Changed implements agent.Runtime.
func (r *Runtime) Changed(ctx context.Context, ref string, last agent.Container) (agent.Container, error) {
	for {
		r.mu.Lock()
		c, err := r.find(ref)
		wake := r.wake
		var now agent.Container
		if err == nil {
			now = c.Container
		}
		r.mu.Unlock()
		if err != nil {
			return agent.Container{}, err
		}
		if now.State != last.State || now.Health != last.Health || now.Gone != last.Gone {
			return now, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return agent.Container{}, context.Cause(ctx)
		}
	}
}

// Network is an agent.Network that notes what it is given.
type Network struct {
	mu    sync.Mutex
	items map[string]cluster.Item
	err   error
	Left  bool
}

// Fail makes Apply fail; nil: work again.
func (n *Network) Fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// Has reports whether an item is applied.
func (n *Network) Has(kind cluster.ItemKind, id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.items[fmt.Sprint(kind, "/", id)]
	return ok
}

// Apply implements agent.Network.
func (n *Network) Apply(ctx context.Context, complete bool, items []cluster.Item) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return n.err
	}
	if complete || n.items == nil {
		n.items = map[string]cluster.Item{}
	}
	for _, it := range items {
		key := fmt.Sprint(it.Kind, "/", it.ID)
		if it.Network == nil && it.Peer == nil && it.Endpoint == nil && it.Service == nil {
			delete(n.items, key)
		} else {
			n.items[key] = it
		}
	}
	return nil
}

// LeaveSwarm implements agent.Network.
func (n *Network) LeaveSwarm(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.items, n.Left = nil, true
	return nil
}
