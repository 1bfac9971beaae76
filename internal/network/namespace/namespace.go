// Package namespace owns network namespaces as things: it makes them, keeps some
// ready, enters them, sets their settings and tells one from another. What is in
// them is not its to know. network and overlay call it.
package namespace

import (
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const ofThread = "/proc/thread-self/ns/net"

// Here returns the namespace of the calling thread.
func Here() (netns.NsHandle, error) { return netns.GetFromPath(ofThread) }

// Do runs f on a thread that is in ns, and returns when it has. What f opens
// there stays there. f must not start goroutines that count on the namespace.
func Do(ns netns.NsHandle, f func() error) error {
	return visit(func() error { return netns.Set(ns) }, f)
}

// DoAt is Do for a namespace known by its file.
func DoAt(path string, f func(ns netns.NsHandle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return Do(ns, func() error { return f(ns) })
}

// visit runs f on a thread that enter has taken elsewhere, and brings the thread
// back. One that cannot be brought back ends: nobody's code ever runs on it,
// which is why it is a goroutine's of its own.
func visit(enter, f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var home netns.NsHandle
		if home, err = Here(); err != nil {
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if err = enter(); err != nil {
			runtime.UnlockOSThread()
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
	}()
	<-done
	return err
}

// ID tells a namespace from another that later has the same path.
type ID struct{ dev, ino uint64 }

// Open opens the namespace that is bound to path. What it returns is to be
// closed with Close, also after an error.
func Open(path string) (netns.NsHandle, ID, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), ID{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(h), &st); err != nil {
		_ = h.Close()
		return netns.None(), ID{}, err
	}
	return h, ID{uint64(st.Dev), st.Ino}, nil
}

// Close closes a namespace, if it is open.
func Close(ns netns.NsHandle) {
	if ns.IsOpen() {
		_ = ns.Close()
	}
}

// At reports whether path is a namespace's file and not just its empty place.
func At(path string) bool {
	here, err := os.Stat(path)
	if err != nil || here.Size() != 0 || !here.Mode().IsRegular() {
		return false
	}
	var there, ours unix.Statfs_t
	return unix.Statfs(path, &there) == nil && unix.Statfs(ofThread, &ours) == nil && there.Type == ours.Type
}

// Set sets a value below /proc/sys in this thread's namespace, and reports
// whether it was another before. A key that this kernel does not have is passed
// over: what it governs is not there either.
func Set(key, value string) (changed bool, err error) {
	path := "/proc/sys/" + key
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err == nil && slices.Equal(strings.Fields(string(have)), strings.Fields(value)):
		return false, nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return false, err
	}
	return true, nil
}

// SetAll sets values by key in ns, as Set does, and returns the keys of those
// that were others before. It stops at the first error.
func SetAll(ns netns.NsHandle, values map[string]string) (changed []string, err error) {
	err = Do(ns, func() error {
		for _, key := range slices.Sorted(maps.Keys(values)) {
			was, err := Set(key, values[key])
			if err != nil {
				return err
			}
			if was {
				changed = append(changed, key)
			}
		}
		return nil
	})
	return changed, err
}
