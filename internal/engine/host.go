package engine

import (
	"fmt"
	"log/slog"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"golang.org/x/sys/unix"
)

// host is what this machine and the daemon's own privileges allow. What a
// container asks beyond it is cut down to it, with a notice, since runc fails on
// what it cannot set.
type host struct {
	cgroups  string // where the hierarchies are mounted
	unified  bool   // cgroup v2 alone
	caps     map[string]bool
	nofile   uint64
	oomAdj   int
	cpus     int
	memory   int64
	resource bool // CAP_SYS_RESOURCE: limits can be raised
}

func readHost(log *slog.Logger) host {
	h := host{cgroups: "/sys/fs/cgroup", caps: map[string]bool{}, cpus: goruntime.NumCPU()}
	var st unix.Statfs_t
	if err := unix.Statfs(h.cgroups, &st); err == nil {
		h.unified = st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	caps, err := boundingSet()
	if err != nil {
		log.Warn("own capabilities are unknown", "err", err)
	}
	for _, c := range caps {
		h.caps[c] = true
	}
	h.resource = h.caps["CAP_SYS_RESOURCE"]
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		h.nofile = lim.Max
	}
	if data, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.oomAdj, _ = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		h.memory = int64(info.Totalram) * int64(info.Unit)
	}
	return h
}

// boundingSet returns the capabilities this process may hand to a child.
func boundingSet() ([]string, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	sets, err := cap.ParseProcPIDStatus(strings.NewReader(string(data)))
	if err != nil {
		return nil, err
	}
	bounding, _ := cap.FromBitmap(sets[cap.Bounding])
	allowed := map[string]bool{}
	for _, name := range bounding {
		allowed[name] = true
	}
	permitted, _ := cap.FromBitmap(sets[cap.Permitted])
	return slices.DeleteFunc(permitted, func(name string) bool { return !allowed[name] }), nil
}

// rlimitOf maps a ulimit's name to its resource.
var rlimitOf = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// clampLimit cuts a limit down to the daemon's own where it cannot be raised.
func (h host) clampLimit(name string, soft, hard uint64) (s, hd uint64, cut bool, err error) {
	res, ok := rlimitOf[name]
	if !ok {
		return 0, 0, false, fmt.Errorf("invalid ulimit type: %s", name)
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(res, &own); err != nil {
		return 0, 0, false, err
	}
	if h.resource && name != "nofile" || hard <= own.Max {
		return soft, hard, false, nil
	}
	if h.resource {
		// The kernel's ceiling for open files binds even those who may raise limits.
		if data, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err == nil && hard <= n {
				return soft, hard, false, nil
			} else if err == nil {
				return min(soft, n), n, true, nil
			}
		}
	}
	return min(soft, own.Max), own.Max, true, nil
}
