package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const threadNS = "/proc/thread-self/ns/net"

// inside runs f on this thread inside the network namespace ns. What f opens
// there stays there. f must not start goroutines that count on the namespace.
func inside(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	home, err := netns.GetFromPath(threadNS)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := netns.Set(home); back != nil {
		// The thread is lost to us: left locked, it ends with its goroutine.
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return err
}

// insidePath is inside for a namespace known by its file.
func insidePath(path string, f func(ns netns.NsHandle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inside(ns, func() error { return f(ns) })
}

// nsPool makes namespaces and keeps some ready: making one takes milliseconds
// and the kernel's network lock, which a container's start need not wait for.
type nsPool struct {
	dir  string
	keep int
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	ready []string
}

func newNSPool(dir string, keep int) *nsPool {
	return &nsPool{dir: dir, keep: keep, wake: make(chan struct{}, 1)}
}

// take returns the path of a fresh namespace that is the caller's from now on.
func (p *nsPool) take() (string, error) {
	p.mu.Lock()
	var path string
	if n := len(p.ready); n > 0 {
		path, p.ready = p.ready[n-1], p.ready[:n-1]
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	if path != "" {
		return path, nil
	}
	return makeNS(p.dir)
}

// run keeps the pool filled until ctx ends, then empties it.
func (p *nsPool) run(ctx context.Context) error {
	for {
		for ctx.Err() == nil && p.short() {
			path, err := makeNS(p.dir)
			if err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
			p.mu.Lock()
			p.ready = append(p.ready, path)
			p.mu.Unlock()
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return p.drain()
		}
	}
}

func (p *nsPool) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready) < p.keep
}

func (p *nsPool) drain() error {
	p.mu.Lock()
	ready := p.ready
	p.ready = nil
	p.mu.Unlock()
	var errs []error
	for _, path := range ready {
		errs = append(errs, removeNS(path))
	}
	return errors.Join(errs...)
}

// sweep removes the files of namespaces that nobody in keep uses.
func (p *nsPool) sweep(keep map[string]bool) error {
	files, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if path := filepath.Join(p.dir, f.Name()); !keep[path] {
			errs = append(errs, removeNS(path))
		}
	}
	return errors.Join(errs...)
}

// makeNS makes a network namespace with loopback up and returns the file it is
// bound to.
func makeNS(dir string) (string, error) {
	var id [6]byte
	rand.Read(id[:])
	path := filepath.Join(dir, hex.EncodeToString(id[:]))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", err
	}
	f.Close()
	if err := bindNewNS(path); err != nil {
		return "", errors.Join(err, removeNS(path))
	}
	return path, nil
}

// bindNewNS moves this thread into a new namespace, dresses it, binds it to path
// and comes back.
func bindNewNS(path string) error {
	runtime.LockOSThread()
	home, err := netns.GetFromPath(threadNS)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = errors.Join(unix.Mount(threadNS, path, "bind", unix.MS_BIND, ""), dressNS())
	if back := netns.Set(home); back != nil {
		return errors.Join(err, back) // the thread stays locked and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// sandboxSysctls are set in every sandbox. Bridged frames must not pass the IP
// hooks; the mesh's answers leave by another interface than the questions came,
// so reverse path filtering is off; interfaces announce themselves when they
// come up; IPv6 is there on loopback alone.
var sandboxSysctls = map[string]string{
	"net/ipv4/ip_forward":                    "1",
	"net/ipv4/conf/all/rp_filter":            "0",
	"net/ipv4/conf/default/rp_filter":        "0",
	"net/ipv4/conf/default/arp_notify":       "1",
	"net/ipv6/conf/default/disable_ipv6":     "1",
	"net/bridge/bridge-nf-call-iptables":     "0",
	"net/bridge/bridge-nf-call-ip6tables":    "0",
	"net/bridge/bridge-nf-call-arptables":    "0",
	"net/ipv4/ip_unprivileged_port_start":    "0",
	"net/ipv4/ping_group_range":              "0 2147483647",
	"net/ipv4/conf/default/route_localnet":   "0",
	"net/ipv4/conf/default/accept_redirects": "0",
}

// dressNS sets up the namespace this thread is in.
func dressNS() error {
	for key, value := range sandboxSysctls {
		if err := setSysctl(key, value); err != nil {
			return err
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}} // always the first
	return h.LinkSetUp(lo)
}

// setSysctl sets a value in this thread's network namespace. A key that this
// kernel does not have is no error, nor one that cannot be written but has the
// value already.
func setSysctl(key, value string) error {
	path := "/proc/sys/" + key
	err := os.WriteFile(path, []byte(value), 0)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if has, readErr := os.ReadFile(path); readErr == nil && slices.Equal(strings.Fields(string(has)), strings.Fields(value)) {
		return nil
	}
	return err
}

// removeNS takes away a namespace's file, and with it the namespace unless
// somebody still lives in it. It is idempotent.
func removeNS(path string) error {
	// Detached, because a process may just be looking at it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
