package namespace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pool makes namespaces and keeps some ready: making one takes milliseconds
// and the kernel's network lock, which a container's start need not wait for.
type Pool struct {
	dir  string
	keep int
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	ready []string
}

// NewPool makes a pool that binds its namespaces to files in dir and keeps so
// many ready while Run runs.
func NewPool(dir string, keep int) *Pool {
	return &Pool{dir: dir, keep: keep, wake: make(chan struct{}, 1)}
}

// Take returns the path of a fresh namespace that is the caller's from now on.
func (p *Pool) Take() (string, error) {
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
	return Make(p.dir)
}

// Run keeps the pool filled until ctx ends, then empties it.
func (p *Pool) Run(ctx context.Context) error {
	for {
		for ctx.Err() == nil && p.short() {
			path, err := Make(p.dir)
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

func (p *Pool) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready) < p.keep
}

func (p *Pool) drain() error {
	p.mu.Lock()
	ready := p.ready
	p.ready = nil
	p.mu.Unlock()
	var errs []error
	for _, path := range ready {
		errs = append(errs, Remove(path))
	}
	return errors.Join(errs...)
}

// Sweep removes the files of namespaces that nobody in keep uses.
func (p *Pool) Sweep(keep map[string]bool) error {
	files, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if path := filepath.Join(p.dir, f.Name()); !keep[path] {
			errs = append(errs, Remove(path))
		}
	}
	return errors.Join(errs...)
}

// Make makes a network namespace with loopback up and returns the file it is
// bound to.
func Make(dir string) (string, error) {
	var id [6]byte
	rand.Read(id[:])
	path := filepath.Join(dir, hex.EncodeToString(id[:]))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", err
	}
	f.Close()
	if err := bindNew(path); err != nil {
		return "", errors.Join(err, Remove(path))
	}
	return path, nil
}

// bindNew makes a namespace, dresses it and binds it to path.
func bindNew(path string) error {
	return visit(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		return errors.Join(unix.Mount(ofThread, path, "bind", unix.MS_BIND, ""), dress())
	})
}

// settings are set in every namespace we make. Bridged frames must not pass the IP
// hooks; the mesh's answers leave by another interface than the questions came,
// so reverse path filtering is off; interfaces announce themselves when they
// come up; IPv6 is there on loopback alone.
var settings = map[string]string{
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

// dress sets up the namespace this thread is in.
func dress() error {
	for key, value := range settings {
		if _, err := Set(key, value); err != nil {
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

// Remove takes away a namespace's file, and with it the namespace unless
// somebody still lives in it. It is idempotent.
func Remove(path string) error {
	// Detached, because a process may just be looking at it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
