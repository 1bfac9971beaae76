package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	ctrmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/cluster"
)

// makeMounts decides a container's mounts from --volumes-from, -v, --mount,
// --tmpfs and the image's volumes, in Docker's order of precedence, and makes
// the volumes that do not exist.
func (e *Engine) makeMounts(ctx context.Context, rec *record) error {
	at := map[string]mountPoint{}
	if err := e.volumesFrom(rec, at); err != nil {
		return err
	}
	asked, err := askedMounts(rec.HostConfig)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, m := range asked {
		dst := m.Destination
		if seen[dst] {
			return cluster.Invalidf("Duplicate mount point: %s", dst)
		}
		seen[dst] = true
		at[dst] = m
	}
	for dst := range rec.Config.Volumes {
		dst = path.Clean(dst)
		if !path.IsAbs(dst) {
			return cluster.Invalidf("invalid volume specification: '%s': mount path must be absolute", dst)
		}
		if _, taken := at[dst]; !taken {
			at[dst] = volumeMount("", dst, false, mount.Mount{Type: mount.TypeVolume, Target: dst})
		}
	}
	for _, dst := range slices.Sorted(maps.Keys(at)) {
		m := at[dst]
		if err := e.prepareMount(ctx, *rec, &m); err != nil {
			return err
		}
		rec.Mounts = append(rec.Mounts, m)
	}
	return nil
}

// volumesFrom takes over the mounts of other containers.
func (e *Engine) volumesFrom(rec *record, at map[string]mountPoint) error {
	for _, from := range rec.HostConfig.VolumesFrom {
		ref, mode, _ := strings.Cut(from, ":")
		c, err := e.find(ref)
		if err != nil {
			return err
		}
		for _, m := range c.view().Mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.Anonymous = false
			m.Spec.Source = m.Name
			if m.Type == mount.TypeBind {
				m.Spec.Source = m.Source
			}
			if mode == "ro" {
				m.RW, m.Spec.ReadOnly = false, true
			}
			at[m.Destination] = m
		}
	}
	return nil
}

// askedMounts reads -v, --mount and --tmpfs.
func askedMounts(hc *container.HostConfig) ([]mountPoint, error) {
	var list []mountPoint
	for _, b := range hc.Binds {
		m, err := parseBind(b)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	for _, m := range hc.Mounts {
		p, err := fromMount(m)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	for dst, opts := range hc.Tmpfs {
		if !path.IsAbs(dst) {
			return nil, cluster.Invalidf("invalid mount config for type \"tmpfs\": invalid mount path: '%s' mount path must be absolute", dst)
		}
		var o [][]string
		for _, opt := range strings.Split(opts, ",") {
			if opt != "" {
				o = append(o, []string{opt})
			}
		}
		dst = path.Clean(dst)
		spec := mount.Mount{Type: mount.TypeTmpfs, Target: dst, TmpfsOptions: &mount.TmpfsOptions{Options: o}}
		list = append(list, mountPoint{Spec: spec, MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: dst, RW: true}})
	}
	return list, nil
}

// parseBind reads -v's [source:]target[:mode].
func parseBind(b string) (mountPoint, error) {
	bad := cluster.Invalidf("invalid volume specification: '%s'", b)
	parts := strings.Split(b, ":")
	var src, dst, mode string
	switch len(parts) {
	case 1:
		dst = parts[0]
	case 2:
		src, dst = parts[0], parts[1]
		if !path.IsAbs(dst) {
			src, dst, mode = "", parts[0], parts[1]
		}
	case 3:
		src, dst, mode = parts[0], parts[1], parts[2]
	default:
		return mountPoint{}, bad
	}
	if !path.IsAbs(dst) {
		return mountPoint{}, cluster.Invalidf("invalid volume specification: '%s': invalid mount config for type \"volume\": invalid mount path: '%s' mount path must be absolute", b, dst)
	}
	if path.Clean(dst) == "/" {
		return mountPoint{}, cluster.Invalidf("invalid volume specification: '%s': invalid mount config for type \"bind\": invalid specification: destination can't be '/'", b)
	}
	spec := mount.Mount{Source: src, Target: path.Clean(dst)}
	bind := path.IsAbs(src)
	if bind {
		spec.Type, spec.BindOptions = mount.TypeBind, &mount.BindOptions{CreateMountpoint: true}
	} else {
		spec.Type, spec.VolumeOptions = mount.TypeVolume, &mount.VolumeOptions{}
	}
	for _, o := range strings.Split(mode, ",") {
		switch o {
		case "", "rw", "z", "Z", "consistent", "cached", "delegated":
		case "ro":
			spec.ReadOnly = true
		case "nocopy":
			if bind {
				return mountPoint{}, cluster.Invalidf("invalid mode: %s", mode)
			}
			spec.VolumeOptions.NoCopy = true
		case "rprivate", "private", "rshared", "shared", "rslave", "slave":
			if !bind {
				return mountPoint{}, cluster.Invalidf("invalid mode: %s", mode)
			}
			spec.BindOptions.Propagation = mount.Propagation(o)
		default:
			return mountPoint{}, cluster.Invalidf("invalid mode: %s", mode)
		}
	}
	m, err := fromMount(spec)
	m.Mode = mode
	return m, err
}

// fromMount reads one --mount.
func fromMount(m mount.Mount) (mountPoint, error) {
	bad := func(format string, args ...any) error {
		return cluster.Invalidf("invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return mountPoint{}, bad("field Target must not be empty")
	}
	if !path.IsAbs(m.Target) {
		return mountPoint{}, bad("invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	m.Target = path.Clean(m.Target)
	if m.Target == "/" {
		return mountPoint{}, bad("invalid specification: destination can't be '/'")
	}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return mountPoint{}, bad("field Source must not be empty")
		}
		if !path.IsAbs(m.Source) {
			return mountPoint{}, bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		if m.BindOptions == nil || !m.BindOptions.CreateMountpoint {
			if _, err := os.Stat(m.Source); err != nil {
				return mountPoint{}, bad("bind source path does not exist: %s", m.Source)
			}
		}
		prop := mount.PropagationRPrivate
		if m.BindOptions != nil && m.BindOptions.Propagation != "" {
			prop = m.BindOptions.Propagation
		}
		return mountPoint{Spec: m, MountPoint: container.MountPoint{
			Type: mount.TypeBind, Source: path.Clean(m.Source), Destination: m.Target, RW: !m.ReadOnly, Propagation: prop,
		}}, nil
	case mount.TypeVolume:
		if m.Source != "" && !validName.MatchString(m.Source) {
			return mountPoint{}, cluster.Invalidf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", m.Source, m.Source)
		}
		if o := m.VolumeOptions; o != nil && o.Subpath != "" {
			if m.Source == "" {
				return mountPoint{}, bad("must not set Subpath when using anonymous volumes")
			}
			if !filepath.IsLocal(o.Subpath) {
				return mountPoint{}, bad("subpath must be a relative path within the volume")
			}
		}
		return volumeMount(m.Source, m.Target, m.ReadOnly, m), nil
	case mount.TypeTmpfs:
		if m.Source != "" {
			return mountPoint{}, bad("field Source must not be specified")
		}
		return mountPoint{Spec: m, MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: m.Target, RW: !m.ReadOnly}}, nil
	case mount.TypeImage, mount.TypeCluster, mount.TypeNamedPipe:
		return mountPoint{}, cluster.NotImplementedf("mounts of type %q are not built yet", m.Type)
	}
	return mountPoint{}, cluster.Invalidf("mount type unknown: %q", m.Type)
}

func volumeMount(name, dst string, readonly bool, spec mount.Mount) mountPoint {
	return mountPoint{Spec: spec, Anonymous: name == "", MountPoint: container.MountPoint{
		Type: mount.TypeVolume, Name: name, Destination: dst, RW: !readonly,
	}}
}

// prepareMount makes a volume and fills it from the image, or a bind's source.
func (e *Engine) prepareMount(ctx context.Context, rec record, m *mountPoint) error {
	switch m.Type {
	case mount.TypeBind:
		return makeSource(*m)
	case mount.TypeVolume:
	default:
		return nil
	}
	if e.cfg.Volumes == nil {
		return cluster.Unavailablef("volume %s: this engine has no volumes", m.Name)
	}
	req := volume.CreateRequest{Name: m.Name, Driver: rec.HostConfig.VolumeDriver}
	if o := m.Spec.VolumeOptions; o != nil {
		req.Labels = o.Labels
		if o.DriverConfig != nil {
			req.Driver, req.DriverOpts = o.DriverConfig.Name, o.DriverConfig.Options
		}
	}
	if m.Anonymous {
		req.Labels = maps.Clone(req.Labels)
		if req.Labels == nil {
			req.Labels = map[string]string{}
		}
		req.Labels["com.docker.volume.anonymous"] = ""
	}
	v, err := e.cfg.Volumes.Create(ctx, req)
	if err != nil {
		return err
	}
	m.Name, m.Driver, m.Source = v.Name, v.Driver, v.Mountpoint
	if m.Mode == "" {
		m.Mode = "z" // what Docker shows
	}
	if o := m.Spec.VolumeOptions; o != nil && (o.NoCopy || o.Subpath != "") {
		return nil
	}
	return e.copyUp(ctx, rec, m)
}

// copyUp fills an empty volume with what the image has at the mount's target.
func (e *Engine) copyUp(ctx context.Context, rec record, m *mountPoint) (err error) {
	src, err := e.cfg.Volumes.Mount(ctx, m.Name, rec.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.cfg.Volumes.Unmount(ctx, m.Name, rec.ID)) }()
	if entries, err := os.ReadDir(src); err != nil || len(entries) > 0 {
		return err
	}
	rootfs, err := e.layers.Client.SnapshotService(rec.Snapshot).Mounts(ctx, rec.ID)
	if err != nil {
		return err
	}
	return ctrmount.WithReadonlyTempMount(ctx, rootfs, func(root string) error {
		dir, err := fs.RootPath(root, m.Destination)
		if err != nil {
			return err
		}
		st, err := os.Stat(dir)
		if err != nil || !st.IsDir() {
			return nil // the image has nothing there
		}
		return fs.CopyDir(src, dir)
	})
}

// bindMounts mounts the container's volumes and returns its mounts for the OCI spec.
func (e *Engine) bindMounts(ctx context.Context, rec record) ([]specs.Mount, error) {
	var list []specs.Mount
	for i, m := range rec.Mounts {
		switch m.Type {
		case mount.TypeTmpfs:
			list = append(list, tmpfs(m))
			continue
		case mount.TypeVolume:
			src, err := e.cfg.Volumes.Mount(ctx, m.Name, rec.ID)
			if err != nil {
				return nil, err
			}
			if o := m.Spec.VolumeOptions; o != nil && o.Subpath != "" {
				if src, err = pinSubpath(rec.RunDir, src, o.Subpath, i); err != nil {
					return nil, err
				}
			}
			m.Source = src
		case mount.TypeBind:
			if err := makeSource(m); err != nil {
				return nil, err
			}
		}
		list = append(list, bind(m))
	}
	return list, nil
}

// makeSource makes the directory that -v binds, where there is nothing yet.
func makeSource(m mountPoint) error {
	if o := m.Spec.BindOptions; o == nil || !o.CreateMountpoint {
		return nil
	}
	if _, err := os.Stat(m.Source); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.MkdirAll(m.Source, 0o755)
}

func bind(m mountPoint) specs.Mount {
	opts := []string{"rbind"}
	prop := m.Propagation
	if prop == "" {
		prop = mount.PropagationRPrivate
	}
	if o := m.Spec.BindOptions; o != nil && o.NonRecursive {
		opts[0] = "bind"
	}
	opts = append(opts, string(prop))
	if m.RW {
		opts = append(opts, "rw")
	} else {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: opts}
}

func tmpfs(m mountPoint) specs.Mount {
	opts := []string{"noexec", "nosuid", "nodev"}
	if o := m.Spec.TmpfsOptions; o != nil {
		if o.SizeBytes > 0 {
			opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
		}
		if o.Mode != 0 {
			opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
		}
		for _, kv := range o.Options {
			opts = append(opts, strings.Join(kv, "="))
		}
	}
	if !m.RW {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: opts}
}

// releaseVolumes gives a container's volumes back.
func (e *Engine) releaseVolumes(ctx context.Context, rec record) error {
	var errs []error
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeVolume && e.cfg.Volumes != nil {
			errs = append(errs, e.cfg.Volumes.Unmount(ctx, m.Name, rec.ID))
		}
	}
	return errors.Join(errs...)
}

// etcFile returns where the host keeps one of the files that are mounted into
// /etc, or "" if the container has none of its own.
func (e *Engine) etcFile(rec record, name string) string {
	p := filepath.Join(e.dir(rec.ID), name)
	if hc := rec.HostConfig; hc.NetworkMode.IsContainer() {
		other, err := e.find(hc.NetworkMode.ConnectedContainer())
		if err != nil {
			return ""
		}
		p = filepath.Join(e.dir(other.id), name)
	}
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}
