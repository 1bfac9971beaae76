package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What happens inside a machine: its first process builds the file systems and
// the network, starts the daemon, starts it again whenever it ends, and reaps.

// boot is the first process of a machine (a hidden command). It returns when the
// machine was told to shut down.
func (f *Fleet) boot(m *Machine) error {
	// The parent closes its end once the cable is plugged in.
	gate := os.NewFile(3, "gate")
	if _, err := gate.Read(make([]byte, 1)); err == nil {
		return errors.New("the cable was not plugged in")
	}
	gate.Close()
	if err := enterCgroup(f.cgroup(m)); err != nil {
		return err
	}
	if err := f.fileSystems(m); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return err
	}
	if err := f.interfaces(m); err != nil {
		return err
	}
	return f.supervise(m)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// fileSystems gives the machine its own /proc, /sys, /run, /tmp and /etc; the
// rest of the host's files it shares.
func (f *Fleet) fileSystems(m *Machine) error {
	if err := mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	// A sysfs of this network namespace, with the host's cgroups moved over.
	keep := filepath.Join(m.dir, "cgroup")
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	if err := mount("/sys/fs/cgroup", keep, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	if err := mount(keep, "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Unmount(keep, unix.MNT_DETACH); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return f.etc(m)
}

// etc lays the machine's own changes over the host's /etc.
func (f *Fleet) etc(m *Machine) error {
	upper, work := filepath.Join(m.dir, "etc"), filepath.Join(m.dir, "etc.work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", m.Addr, m.Name)
	if err := os.WriteFile("/etc/hosts", []byte(hosts), 0o644); err != nil {
		return err
	}
	return os.WriteFile("/etc/hostname", []byte(m.Name+"\n"), 0o644)
}

func (f *Fleet) interfaces(m *Machine) error {
	for name, n := range map[string]*net.IPNet{
		"lo":   nil,
		"eth0": {IP: m.Addr.AsSlice(), Mask: net.CIDRMask(f.Subnet.Bits(), 32)},
	} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n != nil {
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: n}); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, key := range []string{"iptables", "ip6tables", "arptables"} {
		// Where the bridge filter is not built in there is nothing to turn off.
		os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+key, []byte("0"), 0o644)
	}
	return netlink.RouteReplace(&netlink.Route{Gw: addrOf(f.Subnet, 1).AsSlice()})
}

// supervise keeps the daemon running until a SIGTERM, and reaps the children of
// everybody who died before them.
func (f *Fleet) supervise(m *Machine) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan int, 1)
	go reap(ended)
	var daemon int
	var err error
	restart := time.After(0)
	stopping := false
	for {
		select {
		case <-restart:
			if daemon, err = f.startDaemon(m); err != nil {
				return err
			}
		case pid := <-ended:
			if pid != daemon {
				continue
			}
			if stopping {
				return nil // the kernel ends whatever else runs in here
			}
			restart = time.After(300 * time.Millisecond)
		case <-stop:
			stopping = true
			if daemon == 0 || syscall.Kill(daemon, syscall.SIGTERM) != nil {
				return nil
			}
		}
	}
}

// reap waits for every process that ends and names it.
func reap(ended chan<- int) {
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			pause()
		case err == nil:
			ended <- pid
		}
	}
}

func (f *Fleet) startDaemon(m *Machine) (int, error) {
	log, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	args := append([]string{"--host", "unix:///run/skep/skep.sock", "--host", "unix://" + m.Socket(),
		"--data-root", m.DataRoot(), "--exec-root", "/run/skep", "--pidfile", "/run/skep.pid",
		"--cgroup-parent", f.cgroup(m) + "/containers"}, m.Args...)
	cmd := exec.Command(m.Daemon, args...)
	if m.Daemon == "" {
		cmd = exec.Command("/proc/self/exe", append([]string{"daemon"}, args...)...)
		cmd.Args[0] = "skep"
	}
	// The first process is kept small; the daemon is as it is everywhere else.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOGC=") })
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// pause is the step of the loops that wait for the kernel to finish something.
func pause() { time.Sleep(20 * time.Millisecond) }
