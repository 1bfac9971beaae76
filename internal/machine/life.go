package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// CreateOptions are what a new machine is made with.
type CreateOptions struct {
	// Daemon is a program to start in place of `skep daemon`, such as dockerd; it
	// is given the same flags.
	Daemon string
	// DaemonArgs are added to its daemon's command line.
	DaemonArgs []string
}

// Create makes a machine and starts it; it returns when its Engine API answers.
func (f *Fleet) Create(ctx context.Context, name string, opts CreateOptions) (*Machine, error) {
	m, err := f.create(name, opts)
	if err != nil {
		return nil, err
	}
	return m, m.waitReady(ctx)
}

func (f *Fleet) create(name string, opts CreateOptions) (*Machine, error) {
	if !nameRule.MatchString(name) {
		return nil, cluster.Invalidf("machine name %q: letters, digits and inner dashes only, 63 at most", name)
	}
	unlock, err := f.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := f.Get(name); err == nil {
		return nil, cluster.Conflictf("machine %s exists already; remove it with: skep machine rm -f %s", name, name)
	}
	ms, err := f.List()
	if err != nil {
		return nil, err
	}
	if err := f.ensureBridge(); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(f.Root, "fleet.json"), f); err != nil {
		return nil, err
	}
	n := firstHost
	for used := true; used; {
		used = false
		for _, o := range ms {
			if o.Addr == addrOf(f.Subnet, n) {
				used = true
				n++
				break
			}
		}
	}
	if n > 250 {
		return nil, cluster.Unavailablef("the fleet's subnet %s is full", f.Subnet)
	}
	m := &Machine{Name: name, Addr: addrOf(f.Subnet, n), Link: fmt.Sprintf("%s-%d", f.Bridge, n),
		Daemon: opts.Daemon, Args: opts.DaemonArgs, Created: time.Now(), dir: f.dir(name)}
	if err := os.MkdirAll(m.DataRoot(), 0o711); err != nil {
		return nil, err
	}
	if err := m.save(); err != nil {
		return nil, err
	}
	return m, f.powerOn(m)
}

// Start switches a stopped machine on, with its old disk and address.
func (f *Fleet) Start(ctx context.Context, m *Machine) error {
	if err := f.startLocked(m); err != nil {
		return err
	}
	return m.waitReady(ctx)
}

func (f *Fleet) startLocked(m *Machine) error {
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if m.State() == Running {
		return nil
	}
	if err := f.ensureBridge(); err != nil {
		return err
	}
	if err := f.clearAfterPowerOff(m); err != nil {
		return err
	}
	ms, err := f.List()
	if err != nil {
		return err
	}
	if err := f.firewall(ms); err != nil {
		return err
	}
	return f.powerOn(m)
}

// powerOn starts the machine's first process in namespaces of its own and plugs
// its cable in.
func (f *Fleet) powerOn(m *Machine) error {
	gateR, gateW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer gateR.Close()
	log, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "machine", "boot", m.Name)
	cmd.Args[0] = "skep"
	cmd.Env = append(os.Environ(), "SKEP_MACHINES="+f.Root, "container=skep-machine", "GOGC=20")
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.ExtraFiles = []*os.File{gateR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
		syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	m.Pid, m.Started = cmd.Process.Pid, startTime(cmd.Process.Pid)
	err = errors.Join(m.save(), f.plug(m, m.Pid))
	if err != nil {
		gateW.Write([]byte("x")) // it gives up
		gateW.Close()
		return err
	}
	return errors.Join(gateW.Close(), cmd.Process.Release())
}

// waitReady waits until the machine's Engine API answers.
func (m *Machine) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", m.Socket())
		}}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://machine/_ping", nil)
		if err != nil {
			return err
		}
		if resp, err := c.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if m.State() != Running || ctx.Err() != nil {
			return cluster.Unavailablef("machine %s: its daemon does not answer; see %s", m.Name, m.LogFile())
		}
		pause()
	}
}

// Stop shuts a machine down in order: its daemon first, then all else.
func (f *Fleet) Stop(ctx context.Context, m *Machine) error {
	if m.State() == Running {
		if err := syscall.Kill(m.Pid, syscall.SIGTERM); err != nil {
			return err
		}
		if err := m.waitGone(ctx, 30*time.Second); err != nil {
			return f.Kill(ctx, m)
		}
	}
	return f.clearAfterPowerOff(m)
}

// Kill cuts a machine's power: its link and all its processes at once.
func (f *Fleet) Kill(ctx context.Context, m *Machine) error {
	if m.State() == Running {
		if err := errors.Join(unplug(m), syscall.Kill(m.Pid, syscall.SIGKILL)); err != nil {
			return err
		}
		if err := m.waitGone(ctx, 30*time.Second); err != nil {
			return err
		}
	}
	return f.clearAfterPowerOff(m)
}

func (m *Machine) waitGone(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for m.State() == Running {
		if ctx.Err() != nil {
			return cluster.Unavailablef("machine %s: process %s does not end", m.Name, strconv.Itoa(m.Pid))
		}
		pause()
	}
	return nil
}

// clearAfterPowerOff removes what a machine that does not run may have left on
// the host. Its disk stays.
func (f *Fleet) clearAfterPowerOff(m *Machine) error {
	err := errors.Join(unplug(m), removeCgroups(f.cgroup(m)))
	os.Remove(m.Socket())
	return err
}

// Remove takes a machine away with its disk. A running one only with force.
func (f *Fleet) Remove(ctx context.Context, m *Machine, force bool) error {
	if m.State() == Running && !force {
		return cluster.Conflictf("machine %s is running: stop it first, or remove it with -f", m.Name)
	}
	if err := f.Kill(ctx, m); err != nil {
		return err
	}
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.RemoveAll(m.dir); err != nil {
		return err
	}
	ms, err := f.List()
	if err != nil || len(ms) > 0 {
		return err
	}
	return f.clear()
}

// clear removes what the fleet has on the host besides its machines.
func (f *Fleet) clear() error {
	if err := f.removeNetwork(); err != nil {
		return err
	}
	return os.RemoveAll(f.Root)
}

// RemoveAll takes every machine and the fleet's network away. It also clears
// what a crash in the middle of Create left.
func (f *Fleet) RemoveAll(ctx context.Context) error {
	ms, err := f.List()
	if err != nil {
		return err
	}
	for _, m := range ms {
		if err := f.Remove(ctx, m, true); err != nil {
			return err
		}
	}
	if len(ms) > 0 {
		return nil // the last one took the fleet along
	}
	return f.clear()
}

// Partition cuts the machines off from all others; among each other they still
// talk, and the host reaches them all.
func (f *Fleet) Partition(ms []*Machine) error {
	return f.sides(ms, ms[0].Name)
}

// Heal joins machines to the others again.
func (f *Fleet) Heal(ms []*Machine) error { return f.sides(ms, "") }

func (f *Fleet) sides(ms []*Machine, side string) error {
	unlock, err := f.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, m := range ms {
		m.Side = side
		if err := m.save(); err != nil {
			return err
		}
	}
	all, err := f.List()
	if err != nil {
		return err
	}
	return f.firewall(all)
}
