package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
)

// alone measures our start beside containerd, asked by a client in this process
// as our API is, and beside runc, typed. Both are of the peer's packages;
// neither makes a network, so ours makes none here.
func (b *bench) alone(ctx context.Context) error {
	h := b.peer.hosts[0]
	client, err := containerd.New(fmt.Sprintf("/proc/%d/root/run/skep/containerd/containerd.sock", h.m.Pid))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, "bench")
	image, err := importImage(ctx, client, filepath.Join(b.work, "image.tar"))
	if err != nil {
		return err
	}
	runc, err := newBundle(h, filepath.Join(b.work, "peer"))
	if err != nil {
		return err
	}
	defer os.RemoveAll(runc.dir)
	containerdSide, runcSide := &side{name: "containerd 1.6 alone"}, &side{name: "runc 1.1 alone"}
	for run := range b.m.runs + 1 {
		if err := b.quiet(ctx); err != nil {
			return err
		}
		began := time.Now()
		id, err := b.ours.hosts[0].runContainer(ctx, "none", "sleep", "3600")
		if err != nil {
			return err
		}
		ours := time.Since(began).Seconds()
		if err := b.ours.hosts[0].call(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil); err != nil {
			return err
		}
		alone, err := onContainerd(ctx, client, image, h, fmt.Sprint("c", run))
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		floor, err := runc.start(fmt.Sprint("r", run))
		if err != nil {
			return fmt.Errorf("runc: %w", err)
		}
		if run == 0 {
			continue // the first pays for what is made once
		}
		b.record(b.ours, "beside-containerd-alone", "s", ours)
		b.record(containerdSide, "beside-containerd-alone", "s", alone)
		b.record(b.ours, "beside-runc-alone", "s", ours)
		b.record(runcSide, "beside-runc-alone", "s", floor)
	}
	return nil
}

func importImage(ctx context.Context, client *containerd.Client, path string) (containerd.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got, err := client.Import(ctx, f)
	if err != nil {
		return nil, err
	}
	image := containerd.NewImage(client, images.Image{Name: got[0].Name, Target: got[0].Target})
	return image, image.Unpack(ctx, "overlayfs")
}

// onContainerd starts a container as its simplest client would, and removes it.
func onContainerd(ctx context.Context, client *containerd.Client, image containerd.Image, h *host, id string) (seconds float64, err error) {
	began := time.Now()
	c, err := client.NewContainer(ctx, id, containerd.WithSnapshotter("overlayfs"), containerd.WithImage(image), containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime("io.containerd.runc.v2", nil),
		containerd.WithNewSpec(oci.WithProcessArgs("/bin/sleep", "3600"), oci.WithCgroup(filepath.Join(h.cgroup, "containers", id))))
	if err != nil {
		return 0, err
	}
	defer c.Delete(ctx, containerd.WithSnapshotCleanup)
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return 0, err
	}
	defer func() {
		if _, e := task.Delete(ctx, containerd.WithProcessKill); e != nil && !errdefs.IsNotFound(e) && err == nil {
			err = e
		}
	}()
	err = task.Start(ctx)
	return time.Since(began).Seconds(), err
}

// bundle is an OCI bundle that runc starts inside a host.
type bundle struct {
	h         *host
	dir, runc string
}

func newBundle(h *host, peer string) (bundle, error) {
	dir, err := os.MkdirTemp("", "skep-bench-bundle-")
	if err != nil {
		return bundle{}, err
	}
	b := bundle{h, dir, filepath.Join(peer, "root", "usr", "sbin", "runc")}
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		return b, err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return b, err
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "sleep"), bin, 0o755); err != nil {
		return b, err
	}
	cmd := exec.Command(b.runc, "spec", "-b", dir)
	if _, err := output(cmd, cmd.Run); err != nil {
		return b, err
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return b, err
	}
	var spec map[string]any
	if err := json.Unmarshal(raw, &spec); err != nil {
		return b, err
	}
	process, _ := spec["process"].(map[string]any)
	linux, _ := spec["linux"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/sleep", "3600"}
	linux["cgroupsPath"] = filepath.Join(h.cgroup, "containers", "runc")
	if raw, err = json.Marshal(spec); err != nil {
		return b, err
	}
	return b, os.WriteFile(path, raw, 0o644)
}

// start runs a container and removes it.
func (b bundle) start(id string) (seconds float64, err error) {
	state := filepath.Join(b.dir, "state")
	began := time.Now()
	// The container would hold an output that somebody waits for.
	if _, err := b.h.inside("sh", "-c", `exec "$0" --root "$1" run -d -b "$2" "$3" </dev/null >/dev/null 2>&1`, b.runc, state, b.dir, id); err != nil {
		return 0, err
	}
	seconds = time.Since(began).Seconds()
	_, err = b.h.inside(b.runc, "--root", state, "delete", "-f", id)
	return seconds, err
}
