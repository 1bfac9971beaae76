package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// checkOptions checks the local driver's: type, device and o, as mount(8) takes them.
func checkOptions(opts map[string]string) error {
	for k := range opts {
		switch k {
		case "type", "device", "o":
		case "size":
			return errors.New("quota size requested but no quota support")
		default:
			return fmt.Errorf("invalid option: %q", k)
		}
	}
	for have, needs := range map[string][]string{"device": {"type"}, "type": {"device"}, "o": {"device", "type"}} {
		if _, ok := opts[have]; !ok {
			continue
		}
		for _, n := range needs {
			if _, ok := opts[n]; !ok {
				return fmt.Errorf("missing required option: %q", n)
			}
		}
	}
	return nil
}

// Mount makes a volume's data available for a container and returns its path.
// Each Mount of a holder is undone by one Unmount. Both are idempotent: after a
// restart of the daemon a running container's volumes are mounted again, and
// what the kernel still has mounted is left alone.
func (s *Store) Mount(ctx context.Context, name, holder string) (path string, err error) {
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	r, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", cluster.NotFoundf("get %s: no such volume", name)
	}
	if err != nil {
		return "", err
	}
	data := s.data(name)
	if len(r.Options) > 0 {
		if mounted, err := mountinfo.Mounted(data); err != nil {
			return "", err
		} else if !mounted {
			if err := mount(ctx, r.Options, data); err != nil {
				return "", fmt.Errorf("error while mounting volume '%s': %w", data, err)
			}
		}
	}
	s.mu.Lock()
	if s.using[name] == nil {
		s.using[name] = map[string]bool{}
	}
	had := s.using[name][holder]
	s.using[name][holder] = true
	s.mu.Unlock()
	if !had {
		s.event(events.ActionMount, name, map[string]string{"container": holder, "destination": data})
	}
	return data, nil
}

// Adopt takes up, after a restart, which running containers have which volumes,
// and unmounts what an earlier daemon left mounted for nobody. It is to be called
// before anything is mounted.
func (s *Store) Adopt(ctx context.Context, holders map[string][]string) error {
	all, _, err := s.all()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range all {
		for _, id := range holders[r.Name] {
			_, err := s.Mount(ctx, r.Name, id)
			errs = append(errs, err)
		}
		if len(holders[r.Name]) == 0 && len(r.Options) > 0 {
			errs = append(errs, unmount(s.data(r.Name)))
		}
	}
	return errors.Join(errs...)
}

// Unmount gives a volume back.
func (s *Store) Unmount(ctx context.Context, name, holder string) error {
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	had := s.using[name][holder]
	delete(s.using[name], holder)
	last := len(s.using[name]) == 0
	if last {
		delete(s.using, name)
	}
	s.mu.Unlock()
	if had {
		s.event(events.ActionUnmount, name, map[string]string{"container": holder})
	}
	r, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !last || len(r.Options) == 0 {
		return err
	}
	return unmount(s.data(name))
}

func unmount(path string) error {
	for {
		mounted, err := mountinfo.Mounted(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !mounted {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

var mountFlags = map[string]struct {
	clear bool
	flag  uintptr
}{
	"defaults": {}, "rw": {true, unix.MS_RDONLY}, "ro": {false, unix.MS_RDONLY},
	"suid": {true, unix.MS_NOSUID}, "nosuid": {false, unix.MS_NOSUID}, "dev": {true, unix.MS_NODEV}, "nodev": {false, unix.MS_NODEV},
	"exec": {true, unix.MS_NOEXEC}, "noexec": {false, unix.MS_NOEXEC}, "sync": {false, unix.MS_SYNCHRONOUS}, "async": {true, unix.MS_SYNCHRONOUS},
	"dirsync": {false, unix.MS_DIRSYNC}, "atime": {true, unix.MS_NOATIME}, "noatime": {false, unix.MS_NOATIME},
	"diratime": {true, unix.MS_NODIRATIME}, "nodiratime": {false, unix.MS_NODIRATIME}, "relatime": {false, unix.MS_RELATIME},
	"norelatime": {true, unix.MS_RELATIME}, "strictatime": {false, unix.MS_STRICTATIME}, "bind": {false, unix.MS_BIND},
	"rbind": {false, unix.MS_BIND | unix.MS_REC}, "mand": {false, unix.MS_MANDLOCK}, "nomand": {true, unix.MS_MANDLOCK},
}

var propagations = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// parseOptions parts mount(8)'s options into the kernel's flags and the data for
// the file system.
func parseOptions(o string) (flags, propagation uintptr, data []string) {
	for _, w := range strings.Split(o, ",") {
		if f, ok := mountFlags[w]; ok {
			if f.clear {
				flags &^= f.flag
			} else {
				flags |= f.flag
			}
		} else if p, ok := propagations[w]; ok {
			propagation |= p
		} else if w != "" {
			data = append(data, w)
		}
	}
	return flags, propagation, data
}

func mount(ctx context.Context, opts map[string]string, target string) error {
	typ, device := opts["type"], opts["device"]
	flags, propagation, data := parseOptions(opts["o"])
	if typ == "bind" {
		flags |= unix.MS_BIND
	}
	if flags&unix.MS_BIND != 0 && !filepath.IsAbs(device) {
		return fmt.Errorf("failed to mount local volume: device %q is not an absolute path", device)
	}
	if strings.HasPrefix(typ, "nfs") || typ == "cifs" {
		if err := resolveAddr(ctx, data); err != nil {
			return err
		}
	}
	joined := strings.Join(data, ",")
	wrap := func(err error) error {
		text := fmt.Sprintf("failed to mount local volume: mount %s:%s", device, target)
		if flags != 0 {
			text += fmt.Sprintf(", flags: 0x%x", flags)
		}
		if joined != "" {
			text += ", data: " + joined
		}
		return fmt.Errorf("%s: %w", text, err)
	}
	if err := unix.Mount(device, target, typ, flags, joined); err != nil {
		return wrap(err)
	}
	if flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 {
		// A bind mount takes its other flags only in a second call.
		if err := unix.Mount("", target, "", flags|unix.MS_REMOUNT, joined); err != nil {
			return errors.Join(wrap(err), unmount(target))
		}
	}
	if propagation != 0 {
		if err := unix.Mount("", target, "", propagation, ""); err != nil {
			return errors.Join(wrap(err), unmount(target))
		}
	}
	return nil
}

// resolveAddr puts an address where addr= names a host: the kernel asks no resolver.
func resolveAddr(ctx context.Context, data []string) error {
	for i, w := range data {
		host, ok := strings.CutPrefix(w, "addr=")
		if !ok || net.ParseIP(host) != nil {
			continue
		}
		addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
		if err != nil {
			return fmt.Errorf("failed to mount local volume: %w", err)
		}
		data[i] = "addr=" + addrs[0].IP.String()
	}
	return nil
}
