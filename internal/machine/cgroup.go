package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// cgroupMounts returns the mounted cgroup hierarchies: one per controller on v1,
// the unified one on v2.
func cgroupMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		p := strings.Fields(sc.Text())
		if len(p) > 2 && (p[2] == "cgroup" || p[2] == "cgroup2") {
			dirs = append(dirs, p[1])
		}
	}
	return dirs, nil
}

// cgroup is the path of the machine's cgroup in every hierarchy. The daemon is
// in its child "daemon", containers are in its child "containers".
func (f *Fleet) cgroup(m *Machine) string { return "/" + f.Bridge + "/" + m.Name }

// enterCgroup puts this process into the daemon's cgroup of every hierarchy.
func enterCgroup(path string) error {
	dirs, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, d := range dirs {
		group := filepath.Join(d, path, "daemon")
		if err := os.MkdirAll(group, 0o755); err != nil {
			return err
		}
		inherit(d, filepath.Join(path, "daemon"))
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("cgroup %s: %w", group, err)
		}
	}
	return nil
}

// inherit copies cpuset's settings down: a new v1 cpuset group is empty and
// takes no process until it has cpus and memory nodes.
func inherit(mount, path string) {
	dir := mount
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		child := filepath.Join(dir, part)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				os.WriteFile(filepath.Join(child, file), b, 0o644)
			}
		}
		dir = child
	}
}

// removeCgroups ends what is left in the machine's cgroups and removes them.
func removeCgroups(path string) error {
	dirs, err := cgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		top := filepath.Join(d, path)
		var groups []string
		filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				groups = append(groups, p)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0; i-- {
			if err := removeGroup(groups[i]); err != nil {
				errs = append(errs, err)
			}
		}
		os.Remove(filepath.Dir(top)) // the fleet's, once it is empty
	}
	return errors.Join(errs...)
}

func removeGroup(group string) error {
	var err error
	for range 100 {
		for _, pid := range pids(group) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if err = os.Remove(group); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		pause()
	}
	return err
}

func pids(group string) (all []int) {
	b, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 {
			all = append(all, n)
		}
	}
	return all
}

// memory returns what the machine's daemon and containers hold: anonymous and
// kernel memory in bytes, page cache left out. ok is false where the kernel
// does not count it.
func (f *Fleet) memory(m *Machine) (bytes int64, ok bool) {
	dirs, err := cgroupMounts()
	if err != nil {
		return 0, false
	}
	for _, d := range dirs {
		group := filepath.Join(d, f.cgroup(m))
		stat, err := os.ReadFile(filepath.Join(group, "memory.stat"))
		if err != nil {
			continue
		}
		v := map[string]int64{}
		for line := range strings.SplitSeq(string(stat), "\n") {
			if k, n, found := strings.Cut(line, " "); found {
				v[k], _ = strconv.ParseInt(n, 10, 64)
			}
		}
		if anon, v2 := v["anon"]; v2 {
			return anon + v["kernel"], true
		}
		if rss, v1 := v["total_rss"]; v1 {
			b, _ := os.ReadFile(filepath.Join(group, "memory.kmem.usage_in_bytes"))
			kernel, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			return rss + kernel, true
		}
	}
	return 0, false
}
