package agent

import (
	"context"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-dev/skep/internal/engine"
)

// Runtime is what the agent asks of the container engine and the image store.
// A ref is a container's name or id. An unknown image or container is
// errdefs.ErrNotFound; errdefs.ErrUnavailable is tried again, other errors are
// the task's end.
type Runtime interface {
	// Image returns an image that is present on this host.
	Image(ctx context.Context, ref string) (Image, error)
	// Pull fetches an image from its registry, with the credentials if there are any.
	Pull(ctx context.Context, ref string, auth *registry.AuthConfig, progress func(jsonstream.Message)) error
	// Create makes a container. A name that is taken is errdefs.ErrConflict.
	Create(ctx context.Context, req engine.CreateRequest) (id string, err error)
	Inspect(ctx context.Context, ref string) (Container, error)
	// Start starts a container; a running one is left alone.
	Start(ctx context.Context, ref string) error
	// Stop ends a container within the seconds given (nil: its own) and returns
	// when it has ended. One that does not run is left alone.
	Stop(ctx context.Context, ref string, timeout *int) error
	// Remove takes away a container and its anonymous volumes, running or not.
	Remove(ctx context.Context, ref string) error
	// Changed returns the container once its state or health is not as in last.
	Changed(ctx context.Context, ref string, last Container) (Container, error)
}

// Image is what the agent wants to know of an image.
type Image struct {
	Env    []string
	Labels map[string]string
}

// Container is what the agent wants to know of a container.
type Container struct {
	ID     string
	Labels map[string]string
	State  container.ContainerState
	// Gone: its process has ended, but not all is cleared away, and State does not
	// say so yet. Only Changed tells of it.
	Gone bool
	// Health is empty without a health check.
	Health   container.HealthStatus
	PID      int
	ExitCode int
	Err      string          // why it could not be started
	Ports    network.PortMap // as they were bound
}

// running reports whether the container has been started and has not ended.
func (c Container) running() bool {
	switch c.State {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return true
	}
	return false
}

// serving reports whether requests may be sent to the container.
func (c Container) serving() bool {
	return c.running() && !c.Gone && (c.Health == "" || c.Health == container.Healthy)
}

// same reports whether nothing has changed that Changed tells of.
func (c Container) same(last Container) bool {
	return c.running() == last.running() && c.Health == last.Health && c.Gone == last.Gone
}
