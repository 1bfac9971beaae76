package agent

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// running is one step that a worker has under way. It works on its own copy of
// the task; what it finds on the way it notes.
type running struct {
	a      *Agent
	task   *cluster.WantedTask
	status cluster.Status
	notes  chan func(*cluster.Status)
}

// note changes the task's status while the step goes on.
func (r *running) note(ctx context.Context, change func(*cluster.Status)) {
	select {
	case r.notes <- change:
	case <-ctx.Done():
	}
}

func (r *running) do(ctx context.Context, s step) outcome {
	switch s {
	case prepare:
		return r.prepare(ctx)
	case start:
		return r.start(ctx)
	case watch:
		return r.watch(ctx)
	case stop:
		return r.stop(ctx)
	default:
		if err := r.a.removeContainer(ctx, r.task); err != nil {
			return outcome{err: err}
		}
		return outcome{status: shutdown}
	}
}

// ref is the task's container: by its id once that is known.
func (r *running) ref() string {
	if r.status.ContainerID != "" {
		return r.status.ContainerID
	}
	return r.task.Name
}

// shutdown is the status of a task that was told to end.
func shutdown(st cluster.Status) cluster.Status {
	st.Serving = false
	if !st.State.Terminal() {
		st.State, st.Message, st.Err, st.PID = cluster.StateShutdown, "shutdown", "", 0
	}
	return st
}

// turn holds one of the places for creating and starting, so that a hundred
// tasks at once do not all run at half speed.
func (r *running) turn(ctx context.Context, f func() error) error {
	select {
	case r.a.starts <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-r.a.starts }()
	return f()
}

// prepare makes the container, unless an earlier try has made it.
func (r *running) prepare(ctx context.Context) outcome {
	c, err := r.a.cfg.Runtime.Inspect(ctx, r.task.Name)
	switch {
	case err == nil && c.Labels[cluster.LabelTaskID] == r.task.ID:
		return r.prepared(c.ID)
	case err == nil:
		return outcome{err: cluster.Conflictf("Conflict. The container name %q is already in use by container %q.", "/"+r.task.Name, c.ID)}
	case !errdefs.IsNotFound(err):
		return outcome{err: err}
	}
	nets, err := r.networks()
	if err != nil {
		return outcome{err: err}
	}
	if r.task.Spec.ContainerSpec == nil {
		return outcome{err: cluster.NotImplementedf("only tasks that are containers can be run")}
	}
	img, err := r.image(ctx)
	if err != nil {
		return outcome{err: err}
	}
	req, err := request(r.task, img, nets, &r.a.cfg.Description)
	if err != nil {
		return outcome{err: err}
	}
	files, err := r.a.payloads(r.task)
	if err != nil {
		return outcome{err: err}
	}
	req.Request.HostConfig.Mounts = append(req.Request.HostConfig.Mounts, files...)
	var id string
	err = r.turn(ctx, func() error {
		id, err = r.a.cfg.Runtime.Create(ctx, req)
		return err
	})
	if err != nil {
		return outcome{err: err}
	}
	return r.prepared(id)
}

func (r *running) prepared(id string) outcome {
	return outcome{status: func(st cluster.Status) cluster.Status {
		st.State, st.Message, st.Err, st.ContainerID = cluster.StateReady, "prepared", "", id
		return st
	}}
}

// networks returns the networks that the task is in, once the host has them.
func (r *running) networks() (map[string]*cluster.WantedNetwork, error) {
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	nets := map[string]*cluster.WantedNetwork{}
	for _, at := range r.task.Networks {
		n := r.a.networks[at.NetworkID]
		if n == nil {
			return nil, cluster.Unavailablef("network %s is not known to this node yet", at.NetworkID)
		}
		if n.Driver == overlay && r.a.netErr != nil {
			return nil, cluster.Unavailablef("network %s: %v", n.Name, r.a.netErr)
		}
		nets[at.NetworkID] = n
	}
	return nets, nil
}

// stalled is how long a pull may bring nothing before it is given up.
const stalled = 5 * time.Minute

// image returns the task's image, pulled if it is not here. One that is here is
// asked for again only where a registry may be: docs/decisions/0021.
func (r *running) image(ctx context.Context) (Image, error) {
	ref := r.task.Spec.ContainerSpec.Image
	img, missing := r.a.cfg.Runtime.Image(ctx, ref)
	switch {
	case missing != nil && !errdefs.IsNotFound(missing):
		return img, missing
	case missing == nil && (r.task.RegistryAuth == "" || strings.Contains(ref, "@")):
		return img, nil
	}
	err := r.pull(ctx, ref)
	if err == nil {
		return r.a.cfg.Runtime.Image(ctx, ref)
	}
	if missing == nil && ctx.Err() == nil {
		r.a.log.Info("the image that is here is used", "task", r.task.ID, "image", ref, "err", err)
		return img, nil
	}
	// Docker's words first; then the reason, which Docker keeps to its log.
	return Image{}, cluster.NotFoundf("%v (%v)", missing, err)
}

// pull fetches an image and shows in the task's message how that comes along.
func (r *running) pull(ctx context.Context, ref string) error {
	var auth *registry.AuthConfig
	if r.task.RegistryAuth != "" {
		var err error
		if auth, err = authconfig.Decode(r.task.RegistryAuth); err != nil {
			return err
		}
	}
	r.note(ctx, func(st *cluster.Status) { st.Message = "preparing: pulling " + ref })
	pullCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	giveUp := time.AfterFunc(stalled, func() {
		cancel(fmt.Errorf("pulling %s: nothing came for %s", ref, stalled))
	})
	defer giveUp.Stop()
	p := &progress{layers: map[string]*jsonstream.Progress{}}
	err := r.a.cfg.Runtime.Pull(pullCtx, ref, auth, func(m jsonstream.Message) {
		giveUp.Reset(stalled)
		if text := p.add(m, time.Now()); text != "" {
			r.note(ctx, func(st *cluster.Status) { st.Message = "preparing: pulling " + ref + ": " + text })
		}
	})
	if err != nil && ctx.Err() == nil && pullCtx.Err() != nil {
		return context.Cause(pullCtx)
	}
	return err
}

// start starts the container and returns once it is healthy or, without a health
// check, listens on what its service publishes; or has ended.
func (r *running) start(ctx context.Context) outcome {
	rt := r.a.cfg.Runtime
	c, err := rt.Inspect(ctx, r.ref())
	if err != nil {
		return outcome{err: err}
	}
	if c.State == container.StateCreated {
		if _, err := r.networks(); err != nil {
			return outcome{err: err}
		}
		if err := r.turn(ctx, func() error { return rt.Start(ctx, r.ref()) }); err != nil {
			return outcome{err: fmt.Errorf("starting container failed: %w", err)}
		}
		if c, err = rt.Inspect(ctx, r.ref()); err != nil {
			return outcome{err: err}
		}
	}
	for {
		switch {
		case !c.running():
			return r.ended(c, "")
		case c.serving():
			if c.Health == "" {
				awaitListener(ctx, c.PID, r.task.TCPPorts)
			}
			return outcome{status: func(st cluster.Status) cluster.Status {
				r.observe(&st, c)
				st.State, st.Message, st.Err, st.Serving = cluster.StateRunning, "started", "", true
				return st
			}}
		case c.Health == container.Unhealthy:
			return r.unhealthy(ctx)
		}
		seen := c // the note is read by the worker while c moves on
		r.note(ctx, func(st *cluster.Status) { r.observe(st, seen) })
		if c, err = rt.Changed(ctx, r.ref(), c); err != nil {
			return outcome{err: err}
		}
	}
}

// watch waits for the container's end. Its health decides whether it serves.
func (r *running) watch(ctx context.Context) outcome {
	rt := r.a.cfg.Runtime
	c, err := rt.Inspect(ctx, r.ref())
	for {
		switch {
		case err != nil:
			return outcome{err: err}
		case !c.running():
			return r.ended(c, "")
		case c.Health == container.Unhealthy:
			r.note(ctx, func(st *cluster.Status) { st.Serving = false })
			return r.unhealthy(ctx)
		}
		seen := c // the note is read by the worker while c moves on
		r.note(ctx, func(st *cluster.Status) {
			r.observe(st, seen)
			// It was healthy once. After a restart of the daemon its checks begin
			// anew, which is no reason to take it out of the balancers.
			st.Serving = !seen.Gone
		})
		c, err = rt.Changed(ctx, r.ref(), c)
	}
}

// observe notes what is known of the running container.
func (r *running) observe(st *cluster.Status, c Container) {
	st.ContainerID, st.PID, st.Ports = c.ID, c.PID, bound(r.task.HostPorts, c.Ports)
}

func (r *running) ended(c Container, cause string) outcome {
	return outcome{status: func(st cluster.Status) cluster.Status {
		st.ContainerID = c.ID
		return ended(st, c, cause)
	}}
}

// unhealthy ends the container that fails its health check, and the task with it.
func (r *running) unhealthy(ctx context.Context) outcome {
	c, err := r.halt(ctx)
	if err != nil {
		return outcome{err: err}
	}
	return r.ended(c, "unhealthy container")
}

// halt ends the container within its grace period and returns what became of it.
func (r *running) halt(ctx context.Context) (Container, error) {
	if err := r.a.cfg.Runtime.Stop(ctx, r.ref(), grace(r.task)); err != nil {
		return Container{}, err
	}
	return r.a.cfg.Runtime.Inspect(ctx, r.ref())
}

func (r *running) stop(ctx context.Context) outcome {
	c, err := r.halt(ctx)
	if err != nil && !errdefs.IsNotFound(err) {
		return outcome{err: err}
	}
	return outcome{status: func(st cluster.Status) cluster.Status {
		st = shutdown(st)
		if c.State == container.StateExited {
			st.ExitCode = c.ExitCode
		}
		return st
	}}
}

// grace returns the seconds that a task has to end, or nil for the engine's own.
func grace(t *cluster.WantedTask) *int {
	if t.Spec.ContainerSpec == nil || t.Spec.ContainerSpec.StopGracePeriod == nil {
		return nil
	}
	s := int((*t.Spec.ContainerSpec.StopGracePeriod + time.Second - 1) / time.Second)
	return &s
}

// removeContainer ends and removes a task's container and its payloads. It is
// idempotent.
func (a *Agent) removeContainer(ctx context.Context, t *cluster.WantedTask) error {
	c, err := a.cfg.Runtime.Inspect(ctx, t.Name)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return err
	case c.Labels[cluster.LabelTaskID] != t.ID:
		return nil // somebody else's
	}
	if err := a.cfg.Runtime.Stop(ctx, c.ID, grace(t)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := a.cfg.Runtime.Remove(ctx, c.ID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// bound returns the host-mode ports with the numbers they were bound to.
func bound(wanted []swarm.PortConfig, have network.PortMap) []swarm.PortConfig {
	var all []swarm.PortConfig
	for _, p := range wanted {
		port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(p.Protocol))
		if !ok {
			continue
		}
		for _, b := range have[port] {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || b.HostIP.IsValid() && b.HostIP == netip.IPv6Unspecified() {
				continue
			}
			if p.PublishedPort == 0 || uint64(p.PublishedPort) == n {
				p.PublishedPort = uint32(n)
				all = append(all, p)
				break
			}
		}
	}
	return all
}

// guarded does a step. A panic is the task's failure and not the node's: the next
// node that is given the task would fall as well.
func (r *running) guarded(ctx context.Context, s step) (out outcome) {
	defer func() {
		if p := recover(); p != nil {
			r.a.log.Error("a step panicked", "task", r.task.ID, "err", p, "stack", string(debug.Stack()))
			out = outcome{err: cluster.Invalidf("the task met a defect of the node's daemon, which its log tells of: %v", p)}
		}
	}()
	return r.do(ctx, s)
}
