package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
)

// Stats returns one sample of a container's use of resources. One that does not
// run uses none.
func (e *Engine) Stats(ctx context.Context, ref string) (container.StatsResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.StatsResponse{}, err
	}
	rec := c.view()
	s := container.StatsResponse{ID: rec.ID, Name: "/" + rec.Name, OSType: "linux", Read: time.Now()}
	if !rec.State.running() {
		s.Read = time.Time{}
		return s, nil
	}
	s.CPUStats.SystemUsage, s.CPUStats.OnlineCPUs = systemCPU()
	if e.host.unified {
		e.statsV2(rec, &s)
	} else {
		e.statsV1(rec, &s)
	}
	if s.MemoryStats.Limit == 0 || s.MemoryStats.Limit > uint64(e.host.memory) {
		s.MemoryStats.Limit = uint64(e.host.memory)
	}
	if !rec.HostConfig.NetworkMode.IsHost() {
		s.Networks = netStats(rec.State.Pid)
	}
	return s, nil
}

// cgroupFile reads a file of a container's cgroup; what is not there is empty.
func (e *Engine) cgroupFile(rec record, controller, name string) []byte {
	root := e.host.cgroups
	if !e.host.unified {
		root = filepath.Join(root, controller)
	}
	data, err := os.ReadFile(filepath.Join(root, e.cgroup(rec), name))
	if err != nil {
		return nil
	}
	return data
}

func (e *Engine) statsV2(rec record, s *container.StatsResponse) {
	cpu := e.cgroupFile(rec, "", "cpu.stat")
	u := &s.CPUStats
	u.CPUUsage.TotalUsage = cgroupValue(cpu, "usage_usec") * 1000
	u.CPUUsage.UsageInUsermode = cgroupValue(cpu, "user_usec") * 1000
	u.CPUUsage.UsageInKernelmode = cgroupValue(cpu, "system_usec") * 1000
	u.ThrottlingData = container.ThrottlingData{
		Periods: cgroupValue(cpu, "nr_periods"), ThrottledPeriods: cgroupValue(cpu, "nr_throttled"), ThrottledTime: cgroupValue(cpu, "throttled_usec") * 1000,
	}
	s.MemoryStats.Usage = number(e.cgroupFile(rec, "", "memory.current"))
	s.MemoryStats.Limit = number(e.cgroupFile(rec, "", "memory.max"))
	s.MemoryStats.Stats = values(e.cgroupFile(rec, "", "memory.stat"))
	s.PidsStats.Current = number(e.cgroupFile(rec, "", "pids.current"))
	s.PidsStats.Limit = number(e.cgroupFile(rec, "", "pids.max"))
	for _, line := range lines(e.cgroupFile(rec, "", "io.stat")) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		for _, f := range fields[1:] {
			k, v, _ := strings.Cut(f, "=")
			op := map[string]string{"rbytes": "read", "wbytes": "write"}[k]
			if op != "" {
				s.BlkioStats.IoServiceBytesRecursive = append(s.BlkioStats.IoServiceBytesRecursive, blkio(fields[0], op, number([]byte(v))))
			}
		}
	}
}

func (e *Engine) statsV1(rec record, s *container.StatsResponse) {
	u := &s.CPUStats
	u.CPUUsage.TotalUsage = number(e.cgroupFile(rec, "cpuacct", "cpuacct.usage"))
	for _, f := range strings.Fields(string(e.cgroupFile(rec, "cpuacct", "cpuacct.usage_percpu"))) {
		u.CPUUsage.PercpuUsage = append(u.CPUUsage.PercpuUsage, number([]byte(f)))
	}
	const tick = 1e9 / 100 // USER_HZ is 100 on every architecture we run on
	acct := e.cgroupFile(rec, "cpuacct", "cpuacct.stat")
	u.CPUUsage.UsageInUsermode = cgroupValue(acct, "user") * tick
	u.CPUUsage.UsageInKernelmode = cgroupValue(acct, "system") * tick
	throttled := e.cgroupFile(rec, "cpu", "cpu.stat")
	u.ThrottlingData = container.ThrottlingData{
		Periods: cgroupValue(throttled, "nr_periods"), ThrottledPeriods: cgroupValue(throttled, "nr_throttled"), ThrottledTime: cgroupValue(throttled, "throttled_time"),
	}
	s.MemoryStats.Usage = number(e.cgroupFile(rec, "memory", "memory.usage_in_bytes"))
	s.MemoryStats.MaxUsage = number(e.cgroupFile(rec, "memory", "memory.max_usage_in_bytes"))
	s.MemoryStats.Limit = number(e.cgroupFile(rec, "memory", "memory.limit_in_bytes"))
	s.MemoryStats.Failcnt = number(e.cgroupFile(rec, "memory", "memory.failcnt"))
	s.MemoryStats.Stats = values(e.cgroupFile(rec, "memory", "memory.stat"))
	s.PidsStats.Current = number(e.cgroupFile(rec, "pids", "pids.current"))
	s.PidsStats.Limit = number(e.cgroupFile(rec, "pids", "pids.max"))
	for _, line := range lines(e.cgroupFile(rec, "blkio", "blkio.throttle.io_service_bytes_recursive")) {
		if f := strings.Fields(line); len(f) == 3 {
			s.BlkioStats.IoServiceBytesRecursive = append(s.BlkioStats.IoServiceBytesRecursive, blkio(f[0], f[1], number([]byte(f[2]))))
		}
	}
}

func blkio(dev, op string, v uint64) container.BlkioStatEntry {
	major, minor, _ := strings.Cut(dev, ":")
	return container.BlkioStatEntry{Major: number([]byte(major)), Minor: number([]byte(minor)), Op: op, Value: v}
}

func lines(data []byte) []string {
	var list []string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		list = append(list, s.Text())
	}
	return list
}

// values reads "key value" lines.
func values(data []byte) map[string]uint64 {
	out := map[string]uint64{}
	for _, line := range lines(data) {
		if k, v, ok := strings.Cut(line, " "); ok {
			out[k] = number([]byte(v))
		}
	}
	return out
}

func cgroupValue(data []byte, key string) uint64 { return values(data)[key] }

// number reads a number; "max" and anything else is 0.
func number(data []byte) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// systemCPU is the time all processors have worked, in nanoseconds.
func systemCPU() (uint64, uint32) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	var total uint64
	var cpus uint32
	for _, line := range lines(data) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		for _, v := range f[1:8] {
			total += number([]byte(v)) * (1e9 / 100)
		}
	}
	return total, cpus
}

// netStats are the counters of a process's network interfaces.
func netStats(pid int) map[string]container.NetworkStats {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil
	}
	out := map[string]container.NetworkStats{}
	for _, line := range lines(data) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { return number([]byte(f[i])) }
		out[name] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	return out
}

// Top lists a container's processes as ps would.
func (e *Engine) Top(ctx context.Context, ref, args string) (container.TopResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.TopResponse{}, err
	}
	rec := c.view()
	if !rec.State.running() {
		return container.TopResponse{}, errNotRunning(c.id)
	}
	if args == "" {
		args = "-ef"
	}
	fields := strings.Fields(args)
	if slices.ContainsFunc(fields, func(a string) bool { return strings.ContainsAny(a, ";|&$`") }) {
		return container.TopResponse{}, cluster.Invalidf("ps arguments %q", args)
	}
	out, err := exec.CommandContext(ctx, "ps", fields...).CombinedOutput()
	if err != nil {
		return container.TopResponse{}, cluster.Invalidf("ps: %s: %s", err, strings.TrimSpace(string(out)))
	}
	pids := map[string]bool{}
	for _, p := range strings.Fields(string(e.cgroupFile(rec, "pids", "cgroup.procs"))) {
		pids[p] = true
	}
	e.emit(rec, "top", nil)
	return topOf(string(out), pids)
}

// topOf keeps the lines of ps's output whose PID is one of pids.
func topOf(out string, pids map[string]bool) (container.TopResponse, error) {
	rows := strings.Split(strings.TrimRight(out, "\n"), "\n")
	resp := container.TopResponse{Titles: strings.Fields(rows[0]), Processes: [][]string{}}
	at := slices.Index(resp.Titles, "PID")
	if at < 0 {
		return resp, cluster.Invalidf("Couldn't find PID field in ps output")
	}
	for _, row := range rows[1:] {
		f := strings.Fields(row)
		if len(f) <= at || !pids[f[at]] {
			continue
		}
		last := len(resp.Titles) - 1
		if len(f) > last+1 {
			f = append(f[:last:last], strings.Join(f[last:], " ")) // the command has spaces
		}
		resp.Processes = append(resp.Processes, f)
	}
	return resp, nil
}
