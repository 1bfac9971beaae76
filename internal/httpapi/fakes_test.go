package httpapi

import (
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/servicelogs"
)

// fakeEngine is an engine of one container, "box", whose behaviour a test sets.
// What it does not have panics, which fails the test that asks for it.
type fakeEngine struct {
	Containers
	tty     bool
	state   container.State
	list    []container.Summary
	created engine.CreateRequest
	stopped *engine.StopOptions
	waited  container.WaitCondition
	waits   chan engine.WaitResult
	logs    []engine.LogEntry
	logErr  error
	asked   engine.LogsOptions
	attach  func(context.Context, engine.AttachOptions) error
	exec    func(detach bool, size *[2]uint, st engine.Streams, ready func()) error
	events  []events.Message
}

func (f *fakeEngine) find(ref string) error {
	if ref != "box" {
		return cluster.NotFoundf("No such container: %s", ref)
	}
	return nil
}

func (f *fakeEngine) Inspect(_ context.Context, ref string, _ bool) (container.InspectResponse, error) {
	state := f.state
	return container.InspectResponse{ID: "b0", State: &state, Config: &container.Config{Tty: f.tty}}, f.find(ref)
}

func (f *fakeEngine) List(_ context.Context, opts engine.ListOptions) ([]container.Summary, error) {
	if !opts.All {
		return nil, nil
	}
	return f.list, nil
}

func (f *fakeEngine) Create(_ context.Context, req engine.CreateRequest) (container.CreateResponse, error) {
	f.created = req
	if req.Request.Config.Image == "absent" {
		return container.CreateResponse{}, cluster.NotFoundf("No such image: absent:latest")
	}
	return container.CreateResponse{ID: "b0"}, nil
}

func (f *fakeEngine) Start(_ context.Context, ref string) error { return f.find(ref) }

func (f *fakeEngine) Stop(_ context.Context, ref string, opts engine.StopOptions) error {
	f.stopped = &opts
	return f.find(ref)
}

func (f *fakeEngine) Wait(_ context.Context, ref string, cond container.WaitCondition) (<-chan engine.WaitResult, error) {
	f.waited = cond
	return f.waits, f.find(ref)
}

func (f *fakeEngine) Logs(_ context.Context, ref string, opts engine.LogsOptions, head func(bool), yield func(engine.LogEntry) error) error {
	if err := f.find(ref); err != nil {
		return err
	}
	f.asked = opts
	head(f.tty)
	for _, e := range f.logs {
		if err := yield(e); err != nil {
			return err
		}
	}
	return f.logErr
}

func (f *fakeEngine) Attach(ctx context.Context, _ string, opts engine.AttachOptions) error {
	return f.attach(ctx, opts)
}

func (f *fakeEngine) ExecInspect(context.Context, string) (container.ExecInspectResponse, error) {
	return container.ExecInspectResponse{OpenStdin: true, OpenStdout: true, OpenStderr: true}, nil
}

func (f *fakeEngine) ExecStart(_ context.Context, _ string, detach bool, size *[2]uint, st engine.Streams, ready func()) error {
	return f.exec(detach, size, st, ready)
}

func (f *fakeEngine) Events(_ context.Context, _, _ time.Time, _ map[string]map[string]bool, yield func(events.Message) error) error {
	for _, m := range f.events {
		if err := yield(m); err != nil {
			return err
		}
	}
	return nil
}

// fakeImages remembers what it was asked.
type fakeImages struct {
	Images
	calls []string
	pull  func(ref string, p image.Progress) error
}

func (f *fakeImages) Pull(_ context.Context, ref string, _ *ocispec.Platform, _ *registry.AuthConfig, p image.Progress) error {
	return f.pull(ref, p)
}

func (f *fakeImages) Inspect(_ context.Context, ref string) (img apiimage.InspectResponse, err error) {
	f.calls = append(f.calls, "inspect "+ref)
	return img, nil
}

func (f *fakeImages) Tag(_ context.Context, ref, target string) error {
	f.calls = append(f.calls, "tag "+ref+" "+target)
	return nil
}

func (f *fakeImages) List(context.Context, image.ListOptions) ([]apiimage.Summary, error) {
	return []apiimage.Summary{{ID: "sha256:aa", RepoTags: []string{"a:1"}, Size: 7}, {ID: "sha256:bb"}}, nil
}

func (f *fakeImages) Save(_ context.Context, refs []string, w io.Writer) error {
	if len(refs) == 0 {
		return cluster.Invalidf("no image named")
	}
	_, err := io.WriteString(w, strings.Join(refs, ","))
	return err
}

// serve starts a server of fakes and a client of the newest API for it.
func serve(t *testing.T, e *fakeEngine, i *fakeImages) (*httptest.Server, *client.Client) {
	t.Helper()
	s := &Server{Host: Host{ID: "h", Version: "1"}, Containers: e, Images: i, Member: noMember{}, Logs: noMember{}, Control: noControl, Log: slog.New(slog.DiscardHandler)}
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	c, err := client.New(client.WithHost("tcp://" + srv.Listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return srv, c
}

// noMember answers as a node that is in no swarm.
type noMember struct{}

func (noMember) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
}
func (noMember) Init(context.Context, swarm.InitRequest) (string, error) {
	return "", cluster.NotImplementedf("this daemon cannot start a swarm")
}
func (noMember) Join(context.Context, swarm.JoinRequest) error {
	return cluster.NotImplementedf("this daemon cannot join a swarm")
}
func (noMember) Leave(context.Context, bool) error {
	return cluster.Unavailablef("This node is not part of a swarm")
}
func (noMember) Unlock(context.Context, string) error {
	return cluster.Unavailablef("This node is not part of a swarm")
}

func (noMember) Logs(context.Context, string, string, engine.LogsOptions, func(bool), func(servicelogs.Entry) error) error {
	return errNotManager()
}

func noControl() (Control, error) { return nil, errNotManager() }

func errNotManager() error {
	return cluster.Unavailablef(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}
