package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// pinDir is the directory of a bundle in which the subpaths of volumes are
// mounted until runc has mounted them into the container.
const pinDir = "subpaths"

// pinSubpath mounts what is at a subpath of a volume as the bundle's pin n and
// returns the pin. A path would not do for runc: whoever writes to the volume could
// put a link to the host in its way after it was looked at. What is pinned stays
// what it was, and no container reaches the pin.
func pinSubpath(bundle, volume, subpath string, n int) (string, error) {
	fd, err := openBelow(volume, subpath)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	pin := filepath.Join(bundle, pinDir, strconv.Itoa(n))
	if err := makePin(fd, pin); err != nil {
		return "", err
	}
	err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), pin, "", unix.MS_BIND, "")
	if errors.Is(err, unix.ENOENT) { // it was removed just now
		return "", noSubpath(volume, subpath, unix.ENOENT)
	}
	if err != nil {
		return "", fmt.Errorf("subpath %s: %w", subpath, &os.PathError{Op: "mount", Path: pin, Err: err})
	}
	return pin, nil
}

// makePin makes a mount point for what is open as fd.
func makePin(fd int, pin string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", pin, err)
	}
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(pin, 0o700)
	}
	f, err := os.OpenFile(pin, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// openTries is how often a subpath is looked up again while somebody moves
// directories on its way.
const openTries = 100

// openBelow opens what is at a subpath of a volume, for its place only. Links are
// followed as far as they stay in the volume.
func openBelow(volume, subpath string) (int, error) {
	root, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, cluster.NotFoundf("cannot access path %s: %s", volume, err)
	}
	defer func() { _ = unix.Close(root) }()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for range openTries {
		var fd int
		fd, err = unix.Openat2(root, filepath.Clean(subpath), &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			if err == nil {
				return fd, nil
			}
			break
		}
	}
	switch {
	case errors.Is(err, unix.EXDEV):
		return -1, cluster.Invalidf("path concatenation escapes the base directory, base: %s, subpath: %s", volume, subpath)
	case errors.Is(err, unix.ENOSYS):
		return -1, cluster.NotImplementedf("a volume's subpath needs openat2, which Linux has from 5.6 on")
	}
	return -1, noSubpath(volume, subpath, err)
}

// noSubpath says as Docker does that a volume has no such path.
func noSubpath(volume, subpath string, err error) error {
	p := filepath.Join(volume, subpath)
	return cluster.NotFoundf("cannot access path %s: %s", p, &os.PathError{Op: "lstat", Path: p, Err: err})
}

// unpinSubpaths unmounts and removes a bundle's pins. It can be called again, and
// where there are none.
func unpinSubpaths(bundle string) error {
	dir := filepath.Join(bundle, pinDir)
	pins, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range pins {
		pin := filepath.Join(dir, entry.Name())
		// EINVAL: a daemon was killed before it mounted it, or after it unmounted it.
		if err := unix.Unmount(pin, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &os.PathError{Op: "unmount", Path: pin, Err: err})
		}
		errs = append(errs, os.Remove(pin))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(dir)
}
