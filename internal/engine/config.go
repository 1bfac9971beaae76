package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"

	"github.com/skep-dev/skep/internal/engine/layers"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
)

// Images is what the engine asks of the image store.
type Images interface {
	Resolve(ctx context.Context, ref string) (image.Image, error)
}

// Volumes is what the engine asks of the volume store. All but Create are
// idempotent.
type Volumes interface {
	Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error)
	Mount(ctx context.Context, name, holder string) (path string, err error)
	Unmount(ctx context.Context, name, holder string) error
	Remove(ctx context.Context, name string, force bool) error
	// Adopt tells, after a restart, which containers have which volumes.
	Adopt(ctx context.Context, holders map[string][]string) error
}

// Networks is what the engine asks of the network manager; see network.Manager.
type Networks interface {
	Join(ctx context.Context, req network.SandboxRequest) (*network.Sandbox, error)
	Leave(ctx context.Context, containerID string) error
	Adopt(ctx context.Context, running []string) error
	Connect(ctx context.Context, containerID string, ep network.EndpointRequest) (*network.Endpoint, error)
	Disconnect(ctx context.Context, containerID, network string, force bool) error
	Rename(ctx context.Context, containerID, name string) error
}

// Config is what an Engine is made of. Every path it uses lies below DataRoot
// and ExecRoot, so that several daemons run on one host.
type Config struct {
	// DataRoot keeps what outlives a reboot: records, logs, layers.
	DataRoot string
	// ExecRoot keeps what a reboot clears: sockets, bundles, programs. Its path
	// has to be short, since sockets are below it.
	ExecRoot string
	// CgroupParent is the cgroup that containers' own are made in, "/skep" if empty.
	CgroupParent string
	// Namespace is containerd's, "skep" if empty.
	Namespace string
	// Containerd is the socket of an existing containerd to keep images and
	// snapshots in; empty: one in this process.
	Containerd string
	// Layers is an open containerd that the caller closes; nil: New opens one.
	Layers   *layers.Store
	Images   Images
	Volumes  Volumes  // nil: containers with volumes are refused
	Networks Networks // nil: only the networks none and host
	// LogDriver and LogOpts are for containers that name none; "json-file" if empty.
	LogDriver string
	LogOpts   map[string]string
	// Ulimits are given to containers that do not set them.
	Ulimits []*units.Ulimit
	// Init is whether a container that does not say has an init above its command.
	Init bool
	// ContainersPerShim is how many share a shim process, 16 if zero.
	ContainersPerShim int
	Log               *slog.Logger
}

// maxExecRoot leaves room for the longest socket path below ExecRoot in the 107
// bytes that a unix socket's address holds.
const maxExecRoot = 80

// withDefaults fills in what was left empty.
func (c Config) withDefaults() Config {
	if c.CgroupParent == "" {
		c.CgroupParent = "/skep"
	}
	if c.Namespace == "" {
		c.Namespace = "skep"
	}
	if c.LogDriver == "" {
		c.LogDriver = logJSONFile
	}
	if c.ContainersPerShim == 0 {
		c.ContainersPerShim = 16
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	var errs []error
	for name, path := range map[string]string{"data root": c.DataRoot, "exec root": c.ExecRoot} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", name, path))
		}
	}
	if len(c.ExecRoot) > maxExecRoot {
		errs = append(errs, fmt.Errorf("exec root %q is longer than %d bytes, which leaves no room for sockets", c.ExecRoot, maxExecRoot))
	}
	if c.CgroupParent != "" && !filepath.IsAbs(c.CgroupParent) {
		errs = append(errs, fmt.Errorf("cgroup parent %q does not start with /", c.CgroupParent))
	}
	if c.ContainersPerShim < 0 {
		errs = append(errs, fmt.Errorf("containers per shim: %d", c.ContainersPerShim))
	}
	if c.Images == nil {
		errs = append(errs, errors.New("no image store"))
	}
	if err := validateLog(c.LogDriver, c.LogOpts); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// layersConfig is how New and OpenLayers open containerd.
func (c Config) layersConfig() layers.Config {
	return layers.Config{Root: filepath.Join(c.DataRoot, "containerd"), Address: c.Containerd, Namespace: c.Namespace, Log: c.Log}
}

// OpenLayers opens the containerd that an engine of this configuration uses, for
// a caller that shares it with the image store. It is to be given to New as
// Config.Layers, and closed after the engine.
func OpenLayers(ctx context.Context, cfg Config) (*layers.Store, error) {
	return layers.Open(ctx, cfg.withDefaults().layersConfig())
}
