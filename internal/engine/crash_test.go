package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/sys/mountinfo"

	"github.com/skep-dev/skep/internal/image"
	storedvolume "github.com/skep-dev/skep/internal/volume"
)

// TestRecordIsTheNewest: what changes a container at the same moment writes its
// record one after the other.
func TestRecordIsTheNewest(t *testing.T) {
	r := newRig(t)
	c := mustFind(t, r, r.create(nil, nil))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				if err := r.update(c, func(rec *record) { rec.Restarts++ }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(r.file(c.id, recordFile))
	r.must(err)
	var rec record
	r.must(json.Unmarshal(data, &rec))
	if rec.Restarts != 200 {
		t.Errorf("on disk is the %d. of 200 changes", rec.Restarts)
	}
}

// TestUnreadableRecord: what a container wrote is not thrown away because its
// record cannot be read; what has no record never was a container.
func TestUnreadableRecord(t *testing.T) {
	r := newRig(t)
	spoiled, bare := r.create(nil, nil), r.create(nil, nil)
	r.reopen(func() {
		r.must(os.WriteFile(r.file(spoiled, recordFile), []byte("{"), 0o600))
		r.must(os.Remove(r.file(bare, recordFile)))
	})
	sn := r.store.Client.SnapshotService(r.store.Snapshotter)
	ctx := r.context(t.Context())
	if _, err := sn.Stat(ctx, spoiled); err != nil {
		t.Errorf("the snapshot of a container whose record cannot be read: %v", err)
	}
	if _, err := os.Stat(r.dir(spoiled)); err != nil {
		t.Errorf("its directory: %v", err)
	}
	if _, err := sn.Stat(ctx, bare); err == nil {
		t.Error("a snapshot without a record is still there")
	}
	if _, err := os.Stat(r.dir(bare)); err == nil {
		t.Error("a directory without a record is still there")
	}
	r.must(sn.Remove(ctx, spoiled))
	r.must(os.RemoveAll(r.dir(spoiled)))
}

// TestRemovalIsFinished: the daemon died while it removed a container. The next
// one goes on, and takes only the volumes that were to go.
func TestRemovalIsFinished(t *testing.T) {
	r := newRig(t)
	for _, purge := range []bool{false, true} {
		id := r.create(nil, func(q *CreateRequest) { q.Request.Config.Volumes = map[string]struct{}{"/kept": {}} })
		c := mustFind(t, r, id)
		name := c.view().Mounts[0].Name
		// As remove does, up to its first irrevocable step.
		r.must(r.update(c, func(rec *record) { rec.State.Status, rec.State.Purge = container.StateRemoving, purge }))
		r.must(r.store.Client.SnapshotService(r.store.Snapshotter).Remove(r.context(t.Context()), id))
		r.reopen(nil)
		eventually(t, "the removal", func() bool { _, err := r.find(id); return err != nil })
		_, err := r.cfg.Volumes.(*storedvolume.Store).Inspect(t.Context(), name)
		if (err == nil) == purge {
			t.Errorf("removed with its volumes %t: its volume: %v", purge, err)
		}
	}
}

// TestRemovalIsWrittenDown: that it began is on disk before anything is gone.
func TestRemovalIsWrittenDown(t *testing.T) {
	r := newRig(t)
	id := r.create(nil, func(q *CreateRequest) { q.Request.Config.Volumes = map[string]struct{}{"/v": {}} })
	c := mustFind(t, r, id)
	vols := &failing{Volumes: r.cfg.Volumes}
	r.Engine.cfg.Volumes = vols
	if err := r.Remove(t.Context(), id, RemoveOptions{Volumes: true}); err == nil {
		t.Fatal("it was removed")
	}
	if vols.seen.State.Status != container.StateRemoving || !vols.seen.State.Purge {
		t.Errorf("on disk while it was removed: %+v", vols.seen.State)
	}
	r.Engine.cfg.Volumes = r.cfg.Volumes
	r.must(r.remove(r.context(t.Context()), c, RemoveOptions{Volumes: true}))
}

// failing are volumes that cannot be removed. It notes the record as it is on
// disk when that is tried.
type failing struct {
	Volumes
	seen record
}

func (f *failing) Unmount(ctx context.Context, name, holder string) error {
	data, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(f.path())), "containers", holder, recordFile))
	return errors.Join(err, json.Unmarshal(data, &f.seen), f.Volumes.Unmount(ctx, name, holder))
}

func (f *failing) path() string {
	v, err := f.Create(context.Background(), volume.CreateRequest{Name: "any"})
	if err != nil {
		panic(err)
	}
	return filepath.Dir(filepath.Dir(v.Mountpoint)) + "/x"
}

func (f *failing) Remove(context.Context, string, bool) error { return errors.New("it is stuck") }

// tmpfsVolume makes a volume that has to be mounted.
func tmpfsVolume(t *testing.T, r *rig, name string) (mountpoint string) {
	t.Helper()
	v, err := r.cfg.Volumes.Create(t.Context(), volume.CreateRequest{Name: name, DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}})
	r.must(err)
	return v.Mountpoint
}

func withVolume(name string) func(*CreateRequest) {
	return func(q *CreateRequest) {
		q.Request.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: name, Target: "/v"}}
	}
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	is, err := mountinfo.Mounted(path)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// reboundVolumes makes the rig's volumes anew, as a restart of the daemon does.
func (r *rig) reboundVolumes() {
	vols, err := storedvolume.New(storedvolume.Config{Root: filepath.Join(r.cfg.DataRoot, "volumes"), Log: r.cfg.Log, Holders: r.usersOf})
	r.must(err)
	r.cfg.Volumes = vols
}

// TestAdoptedVolumes: a volume that two containers have stays mounted when one of
// them ends, also if both were started by an earlier daemon.
func TestAdoptedVolumes(t *testing.T) {
	r := newRig(t)
	path := tmpfsVolume(t, r, "shared")
	one, two := r.run([]string{"sleep", "1000"}, withVolume("shared")), r.run([]string{"sleep", "1000"}, withVolume("shared"))
	r.reopen(r.reboundVolumes)
	r.must(r.Kill(t.Context(), one, ""))
	if !mounted(t, path) {
		t.Error("it was unmounted while a container had it")
	}
	r.must(r.Kill(t.Context(), two, ""))
	eventually(t, "the volume is unmounted", func() bool { return !mounted(t, path) })
}

// TestStartCutOff: the daemon died while it started a container and before there
// was a process. What the container held by then is given back.
func TestStartCutOff(t *testing.T) {
	r := newRig(t)
	path := tmpfsVolume(t, r, "held")
	id := r.create([]string{"sleep", "1000"}, withVolume("held"))
	rec := mustFind(t, r, id).view()
	vols := &watched{Volumes: r.cfg.Volumes, rundir: rec.RunDir}
	r.Engine.cfg.Volumes = vols
	if err := r.Start(t.Context(), id); err == nil || !vols.begun {
		t.Fatalf("the first thing it holds it holds on record: %t, %v", vols.begun, err)
	}
	if _, err := os.Stat(rec.RunDir); err == nil {
		t.Error("a start that failed is on record as one that was cut off")
	}
	r.Engine.cfg.Volumes = r.cfg.Volumes
	r.must(os.MkdirAll(filepath.Join(rec.RunDir, "rootfs"), 0o711))
	_, err := r.bindMounts(r.context(t.Context()), rec)
	r.must(err)
	r.reopen(r.reboundVolumes)
	eventually(t, "its end", func() bool { return r.inspect(id).State.Status == container.StateExited })
	if mounted(t, path) {
		t.Error("its volume is still mounted")
	}
	if _, err := os.Stat(rec.RunDir); err == nil {
		t.Error("its bundle is still there")
	}
	r.must(r.Start(t.Context(), id))
}

// watched are volumes that cannot be mounted. It notes whether the start that
// wants one is on record.
type watched struct {
	Volumes
	rundir string
	begun  bool
}

func (w *watched) Mount(context.Context, string, string) (string, error) {
	_, err := os.Stat(w.rundir)
	w.begun = err == nil
	return "", errors.New("it is stuck")
}

// churnRoot names the rig that a child process makes and removes containers in,
// until it is killed.
const churnRoot = "SKEP_TEST_CHURN"

func TestMain(m *testing.M) {
	if os.Getenv(churnRoot) == "" {
		os.Exit(m.Run())
	}
	if err := churn(context.Background(), os.Getenv(churnRoot)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

func churnConfig(root string) Config {
	return Config{
		DataRoot: filepath.Join(root, "data"), ExecRoot: filepath.Join(root, "run"),
		CgroupParent: "/skep-test-" + filepath.Base(root), ContainersPerShim: 3, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
}

// churn makes, starts and removes containers, several at once, for ever.
func churn(ctx context.Context, root string) error {
	cfg := churnConfig(root)
	store, err := OpenLayers(ctx, cfg)
	if err != nil {
		return err
	}
	cfg.Layers, cfg.Images = store, image.New(image.Config{Client: store.Client, Namespace: store.Namespace, Snapshotter: store.Snapshotter})
	if cfg.Volumes, err = storedvolume.New(storedvolume.Config{Root: filepath.Join(cfg.DataRoot, "volumes")}); err != nil {
		return err
	}
	e, err := New(ctx, cfg)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	for range 3 {
		go func() {
			for {
				req := CreateRequest{}
				req.Request.Config = &container.Config{Image: "busybox:1", Cmd: []string{"sleep", "1000"}}
				req.Request.HostConfig = &container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{
					{Type: mount.TypeVolume, Source: "shared", Target: "/v"}, withSubpath("kept", "sub", "/s"),
				}}
				c, err := e.Create(ctx, req)
				if err == nil {
					err = e.Start(ctx, c.ID)
				}
				if err == nil {
					err = e.Remove(ctx, c.ID, RemoveOptions{Force: true})
				}
				if err != nil {
					failed <- err
				}
			}
		}()
	}
	fmt.Println("ready")
	return <-failed
}

// TestKilled kills a daemon in the midst of making, starting and removing
// containers, again and again. The next one can remove what is left, and then
// nothing is: no process, mount, cgroup, snapshot, bundle or record.
func TestKilled(t *testing.T) {
	r := newRig(t)
	tmpfsVolume(t, r, "shared")
	r.must(os.Mkdir(filepath.Join(plainVolume(t, r, "kept"), "sub"), 0o755))
	root := filepath.Dir(r.cfg.DataRoot)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	r.must(r.Close())
	r.must(r.store.Close())
	for round := range 6 {
		killChurn(t, root, time.Duration(dice.IntN(400))*time.Millisecond)
		r.rebuild(t, root)
		for _, c := range r.all() {
			// One whose removal was cut off may be gone by now.
			if err := r.Remove(t.Context(), c.id, RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("round %d: remove: %v", round, err)
			}
		}
		if left := r.leftovers(t, root); len(left) > 0 {
			t.Fatalf("round %d: left: %s", round, strings.Join(left, "\n"))
		}
		if round < 5 {
			r.must(r.Close())
			r.must(r.store.Close())
		}
	}
}

// killChurn runs the child and kills it some time after it began its work.
func killChurn(t *testing.T, root string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), churnRoot+"="+root)
	cmd.Stderr = testWriter{t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("the child said %q: %v", line, err)
	}
	<-time.After(after)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the child ended by itself: %v", err)
	}
}

// rebuild opens the rig's engine on what a killed daemon left.
func (r *rig) rebuild(t *testing.T, root string) {
	t.Helper()
	cfg := churnConfig(root)
	cfg.Log = r.cfg.Log
	var err error
	r.store, err = OpenLayers(t.Context(), cfg)
	r.must(err)
	cfg.Layers = r.store
	cfg.Images = image.New(image.Config{Client: r.store.Client, Namespace: r.store.Namespace, Snapshotter: r.store.Snapshotter, Log: cfg.Log})
	r.cfg = cfg
	r.reboundVolumes()
	r.Engine, err = New(t.Context(), r.cfg)
	r.must(err)
	r.live.Store(r.Engine)
}

// leftovers lists what is still there of containers.
func (r *rig) leftovers(t *testing.T, root string) (left []string) {
	t.Helper()
	for _, pattern := range []string{
		filepath.Join(r.cfg.DataRoot, "containers", "*"), filepath.Join(r.cfg.ExecRoot, "c", "*"),
		filepath.Join(r.cfg.ExecRoot, "runc", "*", "*"),
		"/sys/fs/cgroup" + r.cfg.CgroupParent + "/*/", "/sys/fs/cgroup/*" + r.cfg.CgroupParent + "/*/",
	} {
		found, err := filepath.Glob(pattern)
		r.must(err)
		left = append(left, found...)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.Contains(m.Mountpoint+m.VFSOptions, root), false
	})
	r.must(err)
	for _, m := range mounts {
		left = append(left, m.Mountpoint+" "+m.VFSOptions)
	}
	sn := r.store.Client.SnapshotService(r.store.Snapshotter)
	r.must(sn.Walk(r.context(t.Context()), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive {
			left = append(left, "snapshot "+info.Name)
		}
		return nil
	}))
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	r.must(err)
	for _, p := range procs {
		if data, err := os.ReadFile(p); err == nil && strings.Contains(string(data), r.cfg.CgroupParent+"/") {
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "status"))
			left = append(left, fmt.Sprintf("%s: %s: %.200s", p, data, status))
		}
	}
	return left
}
