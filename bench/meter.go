package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// meter measures a window of time: wall and a side's CPU seconds.
type meter struct {
	s     *side
	began time.Time
	cpu   float64
}

func (s *side) meter() (meter, error) {
	cpu, err := s.cpu()
	return meter{s, time.Now(), cpu}, err
}

func (m meter) wall() float64 { return time.Since(m.began).Seconds() }

func (m meter) used() (float64, error) {
	cpu, err := m.s.cpu()
	return cpu - m.cpu, err
}

// cpu is the CPU seconds of all that ran in the side's hosts since they are on:
// daemons, shims, containers and what they called.
func (s *side) cpu() (sum float64, err error) {
	for _, h := range s.hosts {
		v, err := h.cpu()
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

func (h *host) cpu() (float64, error) {
	for _, mount := range []string{"cpuacct", "cpu,cpuacct"} {
		if b, err := os.ReadFile(filepath.Join(cgroupRoot, mount, h.cgroup, "cpuacct.usage")); err == nil {
			ns, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
			return ns / 1e9, err
		}
	}
	stat, err := keyed(filepath.Join(cgroupRoot, h.cgroup, "cpu.stat"))
	return stat["usage_usec"] / 1e6, err
}

// memory is the anonymous and kernel memory of the host's daemons, shims and
// containers, in MB (10⁶ bytes).
func (h *host) memory() (float64, error) {
	v1 := filepath.Join(cgroupRoot, "memory", h.cgroup)
	if stat, err := keyed(filepath.Join(v1, "memory.stat")); err == nil {
		b, err := os.ReadFile(filepath.Join(v1, "memory.kmem.usage_in_bytes"))
		if err != nil {
			return 0, err
		}
		kernel, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
		return (stat["total_rss"] + kernel) / 1e6, err
	}
	stat, err := keyed(filepath.Join(cgroupRoot, h.cgroup, "memory.stat"))
	return (stat["anon"] + stat["kernel"]) / 1e6, err
}

// keyed reads a file of lines "key number".
func keyed(path string) (map[string]float64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if out[k], err = strconv.ParseFloat(v, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return out, nil
}

// cpuTicks returns the whole machine's busy and all ticks.
func cpuTicks() (busy, all int) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		n, err := strconv.Atoi(f)
		if err != nil || i > 7 { // guest time is in user time already
			break
		}
		all += n
		if i != 3 && i != 4 { // idle, waiting for disks
			busy += n
		}
	}
	return busy, all
}
