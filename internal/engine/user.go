package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	continuity "github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// resolveUser turns "user[:group]" and extra groups into numbers by the passwd
// and group files of the container, and returns the user's home too.
func resolveUser(rootfs []mount.Mount, spec string, extra []string) (specs.User, string, error) {
	passwd, err := readRootFile(rootfs, "etc/passwd")
	if err != nil {
		return specs.User{}, "", err
	}
	group, err := readRootFile(rootfs, "etc/group")
	if err != nil {
		return specs.User{}, "", err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", cluster.Invalidf("%s", err)
	}
	gids, err := user.GetAdditionalGroups(extra, bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", cluster.Invalidf("%s", err)
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, g := range slices.Concat([]int{u.Gid}, u.Sgids, gids) {
		if gid := uint32(g); !slices.Contains(out.AdditionalGids, gid) {
			out.AdditionalGids = append(out.AdditionalGids, gid)
		}
	}
	return out, u.Home, nil
}

// readRootFile reads a file of a container's file system that is not mounted. It
// looks through overlayfs's layers itself, since a mount for two small files
// would cost as much as all the rest; what it cannot be sure of it does mount. A
// file that is not there is empty.
func readRootFile(rootfs []mount.Mount, name string) ([]byte, error) {
	dirs, ok := layerDirs(rootfs)
	if ok {
		data, sure, err := searchLayers(dirs, name)
		if sure {
			return data, err
		}
	}
	var data []byte
	err := mount.WithReadonlyTempMount(context.Background(), rootfs, func(root string) error {
		var err error
		data, err = readIn(root, name)
		return err
	})
	return data, err
}

// readIn reads a file below root, which links lead from as they do in a container.
func readIn(root, name string) ([]byte, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	to, err := continuity.RootPath(root, name)
	if err != nil {
		return nil, err
	}
	at, err := filepath.Rel(root, to)
	if err != nil {
		return nil, err
	}
	// An image may have a FIFO there, which would be waited for, or a device, which
	// may do anything when it is opened.
	st, err := r.Stat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !st.Mode().IsRegular() {
		err = cluster.Invalidf("/%s of the image is no file", name)
	}
	if err != nil {
		return nil, err
	}
	f, err := r.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// layerDirs returns the directories that overlayfs would show, the topmost first.
func layerDirs(rootfs []mount.Mount) ([]string, bool) {
	if len(rootfs) != 1 {
		return nil, false
	}
	m := rootfs[0]
	switch m.Type {
	case "bind":
		return []string{m.Source}, true
	case "overlay":
	default:
		return nil, false
	}
	var upper, lower []string
	for _, o := range m.Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = []string{v}
		}
		if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			if strings.ContainsRune(v, '\\') {
				return nil, false
			}
			lower = strings.Split(v, ":")
		}
	}
	return append(upper, lower...), true
}

// searchLayers looks for a file in the layers. sure is false when a link or an
// opaque directory makes the answer depend on more than this can see.
func searchLayers(dirs []string, name string) (data []byte, sure bool, err error) {
	for _, dir := range dirs {
		if st, err := os.Lstat(filepath.Join(dir, filepath.Dir(name))); err == nil && !st.IsDir() {
			return nil, false, nil
		}
		st, err := os.Lstat(filepath.Join(dir, name))
		if err == nil {
			switch {
			case st.Mode().IsRegular():
				data, err := readIn(dir, name)
				return data, true, err
			case st.Mode()&fs.ModeCharDevice != 0:
				return nil, true, nil // a whiteout
			default:
				return nil, false, nil
			}
		}
		if opaque(filepath.Join(dir, filepath.Dir(name))) {
			return nil, true, nil
		}
	}
	return nil, true, nil
}

func opaque(dir string) bool {
	var buf [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Getxattr(dir, name, buf[:]); err == nil && n == 1 && buf[0] == 'y' {
			return true
		}
	}
	return false
}
