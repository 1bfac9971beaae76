package overlay

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsID tells a namespace from another that later has the same path.
type nsID struct{ dev, ino uint64 }

func openNS(path string) (netns.NsHandle, nsID, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), nsID{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(h), &st); err != nil {
		_ = h.Close()
		return netns.None(), nsID{}, err
	}
	return h, nsID{uint64(st.Dev), st.Ino}, nil
}

// within runs fn on a thread that is in ns. fn must not start goroutines that
// depend on it.
func within(ns netns.NsHandle, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = fn()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- err
	}()
	return <-done
}

// sysctls writes settings below /proc/sys/net in ns and returns those that were
// otherwise before. A key that the kernel does not have is passed over: the
// feature it governs is not there either.
func sysctls(ns netns.NsHandle, set map[string]string) (changed []string, err error) {
	err = within(ns, func() error {
		for _, key := range sortedKeys(set) {
			path := "/proc/sys/net/" + key
			have, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil && len(have) > 0 && string(have[:len(have)-1]) == set[key] {
				continue
			}
			if err := os.WriteFile(path, []byte(set[key]), 0o644); err != nil {
				return err
			}
			changed = append(changed, key)
		}
		return nil
	})
	return changed, err
}

// isGone says whether the kernel answered that the thing is not (or no longer)
// there.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH)
}
