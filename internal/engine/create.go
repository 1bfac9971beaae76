package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/durable"
	"github.com/skep-dev/skep/internal/image"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// Create makes a container and does not start it.
func (e *Engine) Create(ctx context.Context, req CreateRequest) (container.CreateResponse, error) {
	resp := container.CreateResponse{Warnings: []string{}}
	if req.Request.Config == nil {
		return resp, cluster.Invalidf("config cannot be empty in order to create a container")
	}
	ctx = e.context(ctx)
	img, err := e.cfg.Images.Resolve(ctx, req.Request.Config.Image)
	if err != nil {
		return resp, err
	}
	rec, err := e.newRecord(req, img)
	if err != nil {
		return resp, err
	}
	if resp.Warnings, err = e.validate(&rec, req); err != nil {
		return resp, err
	}
	if err := e.nameIt(&rec, req.Name); err != nil {
		return resp, err
	}
	if err := e.build(e.whole(ctx), &rec); err != nil {
		e.free(rec.Name, rec.ID)
		return resp, err
	}
	c := newCtr(rec)
	e.mu.Lock()
	e.ctrs[rec.ID] = c
	e.mu.Unlock()
	e.emit(rec, events.ActionCreate, nil)
	resp.ID = rec.ID
	return resp, nil
}

// newRecord makes the record from the request and what the image adds to it.
func (e *Engine) newRecord(req CreateRequest, img image.Image) (record, error) {
	var raw [32]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	cfg := *req.Request.Config
	hostCfg := container.HostConfig{}
	if req.Request.HostConfig != nil {
		hostCfg = *req.Request.HostConfig
	}
	mergeImage(&cfg, img.Config)
	mergeDocker(&cfg, img)
	if cfg.Hostname == "" {
		cfg.Hostname = defaultHostname(id, hostCfg)
	}
	rec := record{
		ID: id, Created: time.Now().UTC(), Swarm: req.Swarm, Config: &cfg, HostConfig: &hostCfg,
		ImageID: img.ID, ImageName: cfg.Image, ChainID: img.ChainID, Platform: img.Config.Platform,
		Snapshot: e.layers.Snapshotter, RunDir: e.runDir(id),
		State: state{Status: container.StateCreated},
	}
	args := slices.Concat(cfg.Entrypoint, cfg.Cmd)
	if len(args) == 0 || args[0] == "" && len(args) == 1 {
		return rec, cluster.Invalidf("no command specified")
	}
	rec.Path, rec.Args = args[0], args[1:]
	return rec, nil
}

// defaultHostname is the short id, or the host's name where its network or names
// are shared. A container in another's network has no name of its own.
func defaultHostname(id string, hc container.HostConfig) string {
	switch {
	case hc.NetworkMode.IsContainer():
		return ""
	case hc.NetworkMode.IsHost(), hc.UTSMode.IsHost():
		if name, err := os.Hostname(); err == nil {
			return name
		}
	}
	return id[:12]
}

// mergeImage fills in from the image what the request leaves open, as Docker does.
func mergeImage(cfg *container.Config, img ocispec.Image) {
	ic := img.Config
	if cfg.User == "" {
		cfg.User = ic.User
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = ic.WorkingDir
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = ic.StopSignal
	}
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = slices.Clone(ic.Cmd)
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = slices.Clone(ic.Entrypoint)
		}
	}
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil // --entrypoint "" takes the image's away
	}
	cfg.Env = mergeEnv(ic.Env, cfg.Env)
	labels := maps.Clone(ic.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, cfg.Labels)
	cfg.Labels = labels
	ports := maps.Clone(cfg.ExposedPorts)
	for p := range ic.ExposedPorts {
		if port, err := apinetwork.ParsePort(p); err == nil {
			if ports == nil {
				ports = apinetwork.PortSet{}
			}
			ports[port] = struct{}{}
		}
	}
	cfg.ExposedPorts = ports
	vols := maps.Clone(cfg.Volumes)
	for v := range ic.Volumes {
		if vols == nil {
			vols = map[string]struct{}{}
		}
		vols[v] = struct{}{}
	}
	cfg.Volumes = vols
}

// mergeDocker does the same for what Docker has beyond OCI's configuration.
func mergeDocker(cfg *container.Config, img image.Image) {
	if len(cfg.Shell) == 0 {
		cfg.Shell = img.Ext.Shell
	}
	if cfg.OnBuild == nil {
		cfg.OnBuild = img.Ext.OnBuild
	}
	theirs := img.Ext.Healthcheck
	switch {
	case theirs == nil:
	case cfg.Healthcheck == nil:
		h := *theirs
		cfg.Healthcheck = &h
	default:
		h := *cfg.Healthcheck
		if len(h.Test) == 0 {
			h.Test = theirs.Test
		}
		h.Interval, h.Timeout = orElse(h.Interval, theirs.Interval), orElse(h.Timeout, theirs.Timeout)
		h.StartPeriod, h.StartInterval = orElse(h.StartPeriod, theirs.StartPeriod), orElse(h.StartInterval, theirs.StartInterval)
		if h.Retries == 0 {
			h.Retries = theirs.Retries
		}
		cfg.Healthcheck = &h
	}
}

// mergeEnv puts b over a by name.
func mergeEnv(a, b []string) []string {
	out := []string{}
	at := map[string]int{}
	for _, kv := range slices.Concat(a, b) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			continue
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	return out
}

// nameIt reserves the wanted name, or one nobody has.
func (e *Engine) nameIt(rec *record, want string) error {
	if want != "" {
		given := want
		want = strings.TrimPrefix(want, "/")
		if !validName.MatchString(want) {
			return cluster.Invalidf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", given)
		}
		rec.Name = want
		return e.reserve(want, rec.ID)
	}
	for range 6 {
		rec.Name = randomName()
		if e.reserve(rec.Name, rec.ID) == nil {
			return nil
		}
	}
	rec.Name = rec.ID[:12]
	return e.reserve(rec.Name, rec.ID)
}

// ownerLabel says on a snapshot whose container it is of: an external containerd
// may serve several daemons.
const ownerLabel = "dev.skep.data-root"

// build makes what belongs to a container on disk, or nothing.
func (e *Engine) build(ctx context.Context, rec *record) (err error) {
	if err := os.MkdirAll(e.dir(rec.ID), 0o710); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.unbuild(ctx, *rec, true))
		}
	}()
	sn := e.layers.Client.SnapshotService(rec.Snapshot)
	labels := map[string]string{"containerd.io/gc.root": rec.Created.Format(time.RFC3339), ownerLabel: e.cfg.DataRoot}
	if _, err := sn.Prepare(ctx, rec.ID, rec.ChainID, snapshots.WithLabels(labels)); err != nil {
		return fmt.Errorf("snapshot of image %s: %w", rec.ImageName, err)
	}
	if err := e.makeMounts(ctx, rec); err != nil {
		return err
	}
	if err := e.writeHostname(*rec); err != nil {
		return err
	}
	if err := e.save(*rec); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(e.dir(rec.ID)))
}

// unbuild removes what build made, and the volumes made for this container alone
// if asked to.
func (e *Engine) unbuild(ctx context.Context, rec record, volumes bool) error {
	var errs []error
	sn := e.layers.Client.SnapshotService(rec.Snapshot)
	if err := sn.Remove(ctx, rec.ID); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	errs = append(errs, e.releaseVolumes(ctx, rec))
	if volumes && e.cfg.Volumes != nil {
		for _, m := range rec.Mounts {
			if !m.Anonymous {
				continue
			}
			// One that another container has taken over by its name stays.
			if err := e.cfg.Volumes.Remove(ctx, m.Name, false); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // the record stays, so that it can be tried again
	}
	return errors.Join(os.RemoveAll(e.dir(rec.ID)), removeBundle(rec.RunDir))
}
