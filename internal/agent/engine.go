package agent

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/image"
)

// Host is the Runtime of a real host: its engine and its images.
type Host struct {
	Engine *engine.Engine
	Images *image.Store
}

var _ Runtime = Host{}

// Image implements Runtime.
func (h Host) Image(ctx context.Context, ref string) (Image, error) {
	img, err := h.Images.Resolve(ctx, ref)
	return Image{Env: img.Config.Config.Env, Labels: img.Config.Config.Labels}, err
}

// Pull implements Runtime.
func (h Host) Pull(ctx context.Context, ref string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error {
	return h.Images.Pull(ctx, ref, nil, auth, progress)
}

// Create implements Runtime.
func (h Host) Create(ctx context.Context, req engine.CreateRequest) (string, error) {
	resp, err := h.Engine.Create(ctx, req)
	return resp.ID, err
}

// Start implements Runtime.
func (h Host) Start(ctx context.Context, ref string) error { return h.Engine.Start(ctx, ref) }

// Stop implements Runtime.
func (h Host) Stop(ctx context.Context, ref string, timeout *int) error {
	return h.Engine.Stop(ctx, ref, engine.StopOptions{Timeout: timeout})
}

// Remove implements Runtime.
func (h Host) Remove(ctx context.Context, ref string) error {
	return h.Engine.Remove(ctx, ref, engine.RemoveOptions{Force: true, Volumes: true})
}

// Inspect implements Runtime.
func (h Host) Inspect(ctx context.Context, ref string) (Container, error) {
	in, err := h.Engine.Inspect(ctx, ref, false)
	if err != nil {
		return Container{}, err
	}
	c := Container{ID: in.ID}
	if in.Config != nil {
		c.Labels = in.Config.Labels
	}
	if s := in.State; s != nil {
		c.State, c.PID, c.ExitCode, c.Err = s.Status, s.Pid, s.ExitCode, s.Error
		if s.Health != nil && s.Health.Status != container.NoHealthcheck {
			c.Health = s.Health.Status
		}
	}
	if in.NetworkSettings != nil {
		c.Ports = in.NetworkSettings.Ports
	}
	return c, nil
}

// Changed implements Runtime. The container's end comes from Wait; its health,
// if it has any, from the engine's events.
func (h Host) Changed(ctx context.Context, ref string, last Container) (Container, error) {
	ctx, cancel := context.WithCancel(ctx)
	since := time.Now()
	ended := make(chan struct{}) // closed when the listener is
	health := make(chan struct{}, 1)
	if last.Health == "" {
		close(ended)
	} else {
		go func() {
			defer close(ended)
			h.healthEvents(ctx, last.ID, since, health)
		}()
	}
	defer func() { cancel(); <-ended }()
	exit, err := h.Engine.Wait(ctx, ref, container.WaitConditionNotRunning)
	if err != nil {
		return Container{}, err
	}
	gone, err := h.Engine.Gone(ref)
	if err != nil {
		return Container{}, err
	}
	is := false
	for {
		c, err := h.Inspect(ctx, ref)
		c.Gone = is || last.Gone
		if err != nil || !c.same(last) {
			return c, err
		}
		if c.Gone {
			gone = nil // what is left to wait for is the end of the clearing
		}
		select {
		case <-gone:
			is = true
		case <-exit:
			exit = nil
			if ctx.Err() != nil {
				return Container{}, context.Cause(ctx)
			}
		case <-health:
		case <-ctx.Done():
			return Container{}, context.Cause(ctx)
		}
	}
}

func (h Host) healthEvents(ctx context.Context, id string, since time.Time, seen chan<- struct{}) {
	only := map[string]map[string]bool{"type": {string(events.ContainerEventType): true}, "container": {id: true}}
	for ctx.Err() == nil {
		err := h.Engine.Events(ctx, since, time.Time{}, only, func(events.Message) error {
			select {
			case seen <- struct{}{}:
			default:
			}
			return nil
		})
		if err == nil {
			return
		}
	}
}
