package engine

import (
	"context"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
)

// Inspect returns everything about a container.
func (e *Engine) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	rec := c.view()
	resp := container.InspectResponse{
		ID: rec.ID, Created: rec.Created.Format(time.RFC3339Nano), Path: rec.Path, Args: rec.Args,
		State: apiState(rec), Image: rec.ImageID, Name: "/" + rec.Name, RestartCount: rec.Restarts,
		ResolvConfPath: e.file(rec.ID, "resolv.conf"), HostnamePath: e.file(rec.ID, "hostname"), HostsPath: e.file(rec.ID, "hosts"),
		Driver: rec.Snapshot, Platform: "linux", HostConfig: hostConfig(rec), Config: rec.Config, Mounts: apiMounts(rec),
		NetworkSettings: apiNetwork(rec), ExecIDs: e.execIDs(rec.ID),
		Storage: &storage.Storage{RootFS: &storage.RootFSStorage{Snapshot: &storage.RootFSStorageSnapshot{Name: rec.Snapshot}}},
	}
	if resp.Args == nil {
		resp.Args = []string{}
	}
	if rec.HostConfig.LogConfig.Type != logNone {
		resp.LogPath = e.logPath(rec.ID)
	}
	if size {
		rw := e.size(rec)
		root := rw + e.imageSize(ctx, rec)
		resp.SizeRw, resp.SizeRootFs = &rw, &root
	}
	return resp, nil
}

// hostConfig is the record's, with the paths that are in force where it names none.
func hostConfig(rec record) *container.HostConfig {
	hc := *rec.HostConfig
	if hc.MaskedPaths == nil && !hc.Privileged {
		hc.MaskedPaths = maskedPaths
	}
	if hc.ReadonlyPaths == nil && !hc.Privileged {
		hc.ReadonlyPaths = readonlyPaths
	}
	return &hc
}

func apiState(rec record) *container.State {
	st := rec.State
	return &container.State{
		Status: st.Status, Running: st.running() || st.Status == container.StateRestarting,
		Paused: st.Status == container.StatePaused, Restarting: st.Status == container.StateRestarting,
		OOMKilled: st.OOM, Dead: st.Status == container.StateDead, Pid: st.Pid, ExitCode: st.ExitCode, Error: st.Error,
		StartedAt: stamp(st.Started), FinishedAt: stamp(st.Finished), Health: st.Health,
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func apiMounts(rec record) []container.MountPoint {
	list := []container.MountPoint{}
	if rec.State.Status == container.StateRemoving {
		return list // it has given them back
	}
	for _, m := range rec.Mounts {
		list = append(list, m.MountPoint)
	}
	return list
}

func apiNetwork(rec record) *container.NetworkSettings {
	ns := &container.NetworkSettings{Ports: apinetwork.PortMap{}, Networks: map[string]*apinetwork.EndpointSettings{}}
	if rec.State.running() {
		ns.SandboxID = rec.ID
		ns.SandboxKey = rec.Sandbox.NetNS
		for p := range rec.Config.ExposedPorts {
			ns.Ports[p] = nil
		}
		maps.Copy(ns.Ports, rec.Sandbox.Ports)
	}
	for _, ep := range rec.Endpoints {
		ns.Networks[ep.Network] = ep.Settings.Copy()
	}
	return ns
}

func (e *Engine) execIDs(id string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []string
	for _, x := range e.execs {
		if x.c.id == id {
			ids = append(ids, x.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// size is how much a container has written to its own file system, in bytes.
func (e *Engine) size(rec record) int64 {
	rootfs, err := e.layers.Client.SnapshotService(rec.Snapshot).Mounts(e.ctx, rec.ID)
	if err != nil || len(rootfs) != 1 {
		return 0
	}
	upper := rootfs[0].Source
	for _, o := range rootfs[0].Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		}
	}
	var total int64
	_ = filepath.WalkDir(upper, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // it is being written to; what has just gone does not count
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

// imageSize is the size of the layers below a container.
func (e *Engine) imageSize(ctx context.Context, rec record) int64 {
	ctx = e.context(ctx)
	sn := e.layers.Client.SnapshotService(rec.Snapshot)
	var total int64
	for key := rec.ChainID; key != ""; {
		info, err := sn.Stat(ctx, key)
		if err != nil {
			return total
		}
		if use, err := sn.Usage(ctx, key); err == nil {
			total += use.Size
		}
		key = info.Parent
	}
	return total
}
