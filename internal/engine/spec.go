package engine

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/cluster"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultCaps are the capabilities of a container that asks for none.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// spec makes the OCI runtime's configuration of a container that is about to
// start. rootfs are the mounts of its file system, netns its network namespace
// ("" makes a new one), binds its mounts with their sources resolved.
func (e *Engine) spec(rec record, rootfs []mount.Mount, netns string, binds []specs.Mount) (*specs.Spec, error) {
	hc := rec.HostConfig
	sec, err := parseSecurity(hc.SecurityOpt)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: "rootfs", Readonly: hc.ReadonlyRootfs},
		Hostname:    rec.Config.Hostname,
		Domainname:  rec.Config.Domainname,
		Annotations: hc.Annotations,
		Linux:       &specs.Linux{Sysctl: sysctls(hc), CgroupsPath: e.cgroup(rec)},
	}
	if hc.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", "" // they are the host's
	}
	if s.Linux.Namespaces, err = e.namespaces(rec, netns); err != nil {
		return nil, err
	}
	if s.Process, err = e.process(rec, rootfs, sec); err != nil {
		return nil, err
	}
	if s.Mounts, err = e.mounts(rec, binds, sec); err != nil {
		return nil, err
	}
	if err := e.resources(rec, s); err != nil {
		return nil, err
	}
	if !hc.Privileged && !sec.openSysPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
		if hc.MaskedPaths != nil {
			s.Linux.MaskedPaths = hc.MaskedPaths
		}
		if hc.ReadonlyPaths != nil {
			s.Linux.ReadonlyPaths = hc.ReadonlyPaths
		}
	}
	if err := setSeccomp(s, hc.Privileged, sec); err != nil {
		return nil, err
	}
	return s, nil
}

// sysctls are those asked for. As Docker, a container with a network of its own
// needs no privilege for low ports and for ping.
func sysctls(hc *container.HostConfig) map[string]string {
	all := map[string]string{}
	if !hc.NetworkMode.IsHost() && !hc.NetworkMode.IsContainer() {
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
		all["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(all, hc.Sysctls)
	return all
}

// cgroup is the path of a container's cgroup in the host's hierarchies.
func (e *Engine) cgroup(rec record) string {
	parent := rec.HostConfig.CgroupParent
	if parent == "" {
		parent = e.cfg.CgroupParent
	}
	return path.Join("/", parent, rec.ID)
}

func setSeccomp(s *specs.Spec, privileged bool, sec security) error {
	switch {
	case privileged || sec.seccomp == "unconfined":
		return nil
	case sec.seccomp == "" || sec.seccomp == "builtin":
		p, err := seccomp.GetDefaultProfile(s)
		s.Linux.Seccomp = p
		return err
	default:
		p, err := seccomp.LoadProfile(sec.seccomp, s)
		if err != nil {
			return cluster.Invalidf("%s", err)
		}
		s.Linux.Seccomp = p
		return nil
	}
}

// process is the container's first process.
func (e *Engine) process(rec record, rootfs []mount.Mount, sec security) (*specs.Process, error) {
	cfg, hc := rec.Config, rec.HostConfig
	usr, home, err := resolveUser(rootfs, cfg.User, hc.GroupAdd)
	if err != nil {
		return nil, err
	}
	usr.Umask = hc.Umask
	p := &specs.Process{
		Terminal:        cfg.Tty,
		User:            usr,
		Args:            e.args(rec),
		Env:             e.env(rec, home, cfg.Tty),
		Cwd:             cfg.WorkingDir,
		Capabilities:    e.capabilities(hc, usr.UID),
		NoNewPrivileges: sec.noNewPrivs,
		OOMScoreAdj:     e.oomScore(rec),
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if cfg.Tty && (hc.ConsoleSize[0] > 0 || hc.ConsoleSize[1] > 0) {
		p.ConsoleSize = &specs.Box{Height: hc.ConsoleSize[0], Width: hc.ConsoleSize[1]}
	}
	limits := slices.Clone(hc.Ulimits)
	for _, u := range e.cfg.Ulimits {
		if !slices.ContainsFunc(limits, func(have *container.Ulimit) bool { return have.Name == u.Name }) {
			limits = append(limits, u)
		}
	}
	for _, u := range limits {
		soft, hard, cut, err := e.host.clampLimit(u.Name, uint64(u.Soft), uint64(u.Hard))
		if err != nil {
			return nil, err
		}
		if cut {
			e.log.Warn("ulimit cut down to what this host allows", "container", rec.ID[:12], "ulimit", u.String(), "hard", hard)
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: soft, Hard: hard})
	}
	return p, nil
}

// env is Docker's: PATH, HOSTNAME and HOME beneath what the container sets.
func (e *Engine) env(rec record, home string, tty bool) []string {
	base := []string{defaultPath}
	if rec.Config.Hostname != "" {
		base = append(base, "HOSTNAME="+rec.Config.Hostname)
	}
	if tty {
		base = append(base, "TERM=xterm")
	}
	var set []string
	for _, kv := range rec.Config.Env {
		if strings.Contains(kv, "=") { // a name alone takes the variable away
			set = append(set, kv)
		} else {
			base = slices.DeleteFunc(base, func(b string) bool { return strings.HasPrefix(b, kv+"=") })
		}
	}
	env := mergeEnv(base, set)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) && home != "" {
		env = append(env, "HOME="+home)
	}
	return env
}

// oomScore keeps the score within what this daemon may set.
func (e *Engine) oomScore(rec record) *int {
	score := rec.HostConfig.OomScoreAdj
	if score < e.host.oomAdj && !e.host.resource {
		if score != 0 {
			e.log.Warn("OOM score raised to the daemon's own", "container", rec.ID[:12], "score", e.host.oomAdj)
		}
		score = e.host.oomAdj
	}
	return &score
}

// capabilities applies --cap-add, --cap-drop and --privileged, within what this
// daemon has itself. A user other than root holds none until it runs a program
// that has some.
func (e *Engine) capabilities(hc *container.HostConfig, uid uint32) *specs.LinuxCapabilities {
	set := map[string]bool{}
	for _, c := range defaultCaps {
		set[c] = true
	}
	everything := func(to bool) {
		for c := range e.host.caps {
			set[c] = to
		}
	}
	if hc.Privileged {
		everything(true)
	} else {
		if slices.ContainsFunc(hc.CapDrop, isAll) {
			clear(set)
		}
		if slices.ContainsFunc(hc.CapAdd, isAll) {
			everything(true)
		}
		for _, c := range hc.CapDrop {
			delete(set, capName(c))
		}
		for _, c := range hc.CapAdd {
			if !isAll(c) {
				set[capName(c)] = true
			}
		}
	}
	var list []string
	for _, c := range slices.Sorted(maps.Keys(set)) {
		if e.host.caps[c] {
			list = append(list, c)
		} else if slices.ContainsFunc(hc.CapAdd, func(a string) bool { return capName(a) == c }) {
			e.log.Warn("the daemon does not have a capability that a container asks for", "capability", c)
		}
	}
	caps := &specs.LinuxCapabilities{Bounding: list}
	if uid == 0 {
		caps.Effective, caps.Permitted = list, list
	}
	return caps
}

func isAll(c string) bool { return strings.EqualFold(c, "ALL") }

func capName(c string) string {
	c = strings.ToUpper(c)
	if strings.HasPrefix(c, "CAP_") {
		return c
	}
	return "CAP_" + c
}

// namespaces are the container's own but where it shares the host's or another's.
func (e *Engine) namespaces(rec record, netns string) ([]specs.LinuxNamespace, error) {
	hc := rec.HostConfig
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string) {
		list = append(list, specs.LinuxNamespace{Type: t, Path: path})
	}
	if !hc.NetworkMode.IsHost() {
		add(specs.NetworkNamespace, netns)
	}
	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, "")
	}
	if !hc.CgroupnsMode.IsHost() {
		add(specs.CgroupNamespace, "")
	}
	shared := func(ref string, t specs.LinuxNamespaceType, file string) error {
		pid, err := e.pidOf(ref)
		if err != nil {
			return err
		}
		add(t, fmt.Sprintf("/proc/%d/ns/%s", pid, file))
		return nil
	}
	switch {
	case hc.PidMode.IsContainer():
		if err := shared(hc.PidMode.Container(), specs.PIDNamespace, "pid"); err != nil {
			return nil, err
		}
	case !hc.PidMode.IsHost():
		add(specs.PIDNamespace, "")
	}
	switch {
	case hc.IpcMode.IsContainer():
		if err := shared(hc.IpcMode.Container(), specs.IPCNamespace, "ipc"); err != nil {
			return nil, err
		}
	case !hc.IpcMode.IsHost():
		add(specs.IPCNamespace, "")
	}
	return list, nil
}

// pidOf returns the first process of a running container.
func (e *Engine) pidOf(ref string) (int, error) {
	c, err := e.find(ref)
	if err != nil {
		return 0, err
	}
	rec := c.view()
	if !rec.State.running() {
		return 0, cluster.Conflictf("cannot join the namespace of a non running container: %s", ref)
	}
	return rec.State.Pid, nil
}

// mounts are the system's file systems, Docker's three files, and binds.
func (e *Engine) mounts(rec record, binds []specs.Mount, sec security) ([]specs.Mount, error) {
	hc := rec.HostConfig
	ro := "ro"
	if hc.Privileged {
		ro = "rw"
	}
	cg := ro
	if sec.writableCgrps {
		cg = "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{cg, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	shm, err := e.shm(hc)
	if err != nil {
		return nil, err
	}
	list = append(list, shm...)
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if src := e.etcFile(rec, name); src != "" {
			list = append(list, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: src, Options: []string{"rbind", "rprivate", "rw"}})
		}
	}
	if hc.ReadonlyRootfs {
		for i := range list {
			if strings.HasPrefix(list[i].Destination, "/etc/") {
				list[i].Options[2] = "ro"
			}
		}
	}
	list = append(list, e.initMount(hc)...)
	taken := map[string]bool{}
	for _, b := range binds {
		taken[filepath.Clean(b.Destination)] = true
	}
	list = slices.DeleteFunc(list, func(m specs.Mount) bool { return taken[m.Destination] })
	// A mount comes after the one it lies below.
	slices.SortStableFunc(binds, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
	return append(list, binds...), nil
}

func (e *Engine) shm(hc *container.HostConfig) ([]specs.Mount, error) {
	switch {
	case hc.IpcMode.IsNone():
		return nil, nil
	case hc.IpcMode.IsHost():
		return []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rw"}}}, nil
	case hc.IpcMode.IsContainer():
		pid, err := e.pidOf(hc.IpcMode.Container())
		if err != nil {
			return nil, err
		}
		return []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: fmt.Sprintf("/proc/%d/root/dev/shm", pid), Options: []string{"rbind", "rw"}}}, nil
	}
	return []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", hc.ShmSize)}}}, nil
}
