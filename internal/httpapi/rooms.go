package httpapi

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/engine"
	imagestore "github.com/skep-dev/skep/internal/image"
)

// The rooms of one host, as the API needs them: *engine.Engine, *image.Store,
// *volume.Store and *network.Manager are what stands behind them. They are wider
// than the four methods of the house's rule because they are the container
// runtime, its exception. All of them return errdefs kinds.

// Containers is what the API asks of the engine.
type Containers interface {
	Create(ctx context.Context, req engine.CreateRequest) (container.CreateResponse, error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, opts engine.StopOptions) error
	Restart(ctx context.Context, ref string, opts engine.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Remove(ctx context.Context, ref string, opts engine.RemoveOptions) error
	Prune(ctx context.Context, filters map[string]map[string]bool) (container.PruneReport, error)
	Rename(ctx context.Context, ref, name string) error
	Resize(ctx context.Context, ref string, height, width uint32) error
	Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan engine.WaitResult, error)
	List(ctx context.Context, opts engine.ListOptions) ([]container.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	Top(ctx context.Context, ref, args string) (container.TopResponse, error)
	Stats(ctx context.Context, ref string) (container.StatsResponse, error)
	Logs(ctx context.Context, ref string, opts engine.LogsOptions, head func(tty bool), yield func(engine.LogEntry) error) error
	Attach(ctx context.Context, ref string, opts engine.AttachOptions) error
	ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (string, error)
	ExecStart(ctx context.Context, id string, detach bool, size *[2]uint, streams engine.Streams, ready func()) error
	ExecResize(ctx context.Context, id string, height, width uint32) error
	ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error)
	ConnectNetwork(ctx context.Context, ref, network string, cfg *network.EndpointSettings) error
	DisconnectNetwork(ctx context.Context, ref, network string, force bool) error
	Events(ctx context.Context, since, until time.Time, filters map[string]map[string]bool, yield func(events.Message) error) error
	Publish(typ events.Type, action events.Action, actor events.Actor)
}

// Images is what the API asks of the image store.
type Images interface {
	Pull(ctx context.Context, ref string, platform *ocispec.Platform, auth *registry.AuthConfig, progress imagestore.Progress) error
	Push(ctx context.Context, ref string, auth *registry.AuthConfig, progress imagestore.Progress) error
	Digest(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error)
	Load(ctx context.Context, tar io.Reader, progress imagestore.Progress) error
	Save(ctx context.Context, refs []string, w io.Writer) error
	Import(ctx context.Context, tar io.Reader, ref, message string, changes []string, platform *ocispec.Platform) (id string, err error)
	Tag(ctx context.Context, ref, target string) error
	List(ctx context.Context, opts imagestore.ListOptions) ([]image.Summary, error)
	Inspect(ctx context.Context, ref string) (image.InspectResponse, error)
	History(ctx context.Context, ref string) ([]image.HistoryResponseItem, error)
	Remove(ctx context.Context, ref string, force, prune bool) ([]image.DeleteResponse, error)
	Prune(ctx context.Context, all bool, until time.Time) (image.PruneReport, error)
}

// Volumes is what the API asks of the volume store.
type Volumes interface {
	Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error)
	Inspect(ctx context.Context, name string) (volume.Volume, error)
	List(ctx context.Context, filters map[string]map[string]bool) (volume.ListResponse, error)
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, filters map[string]map[string]bool) (volume.PruneReport, error)
}

// Networks is what the API asks of the network manager.
type Networks interface {
	Create(ctx context.Context, req network.CreateRequest) (network.CreateResponse, error)
	Remove(ctx context.Context, ref string) error
	List(ctx context.Context) ([]network.Inspect, error)
	Inspect(ctx context.Context, ref string) (network.Inspect, error)
}
