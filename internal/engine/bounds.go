package engine

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
)

// What no container can have is refused when it is made, and not when it is
// started: by then a service would have tried it on node after node.

// The kernel's bounds, in Docker's words.
const (
	minPeriod, maxPeriod = 1_000, 1_000_000 // µs of CPU time accounting
	minQuota             = 1_000
	maxOOMScore          = 1000
	minWeight, maxWeight = 10, 1000
	maxAnswerHosts       = 4096 // lines of /etc/hosts or resolv.conf asked for
)

var cpuSet = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

func validateBounds(cfg *container.Config, hc *container.HostConfig) error {
	for _, check := range []func() error{
		func() error { return validateNothing(hc) },
		func() error { return validateWords(cfg, hc) },
		func() error { return validateCPU(&hc.Resources) },
		func() error { return validateWeights(&hc.Resources) },
		func() error { return validateCaps(hc) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	switch {
	case hc.OomScoreAdj < -maxOOMScore || hc.OomScoreAdj > maxOOMScore:
		return cluster.Invalidf("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	case hc.ShmSize < 0:
		return cluster.Invalidf("SHM size can not be less than 0")
	case hc.MemorySwappiness != nil && (*hc.MemorySwappiness < -1 || *hc.MemorySwappiness > 100):
		return cluster.Invalidf("Invalid value: %d, valid memory swappiness range is 0-100", *hc.MemorySwappiness)
	case hc.MemoryReservation != 0 && hc.MemoryReservation < minMemory:
		return cluster.Invalidf("Minimum memory reservation allowed is 6MB")
	case len(hc.ExtraHosts)+len(hc.DNS)+len(hc.DNSSearch)+len(hc.DNSOptions) > maxAnswerHosts:
		return cluster.Invalidf("more than %d hosts, name servers, search domains and options", maxAnswerHosts)
	}
	return nil
}

// validateNothing refuses lists that hold null where there should be something.
func validateNothing(hc *container.HostConfig) error {
	r := &hc.Resources
	for _, list := range [][]*blkiodev.ThrottleDevice{r.BlkioDeviceReadBps, r.BlkioDeviceWriteBps, r.BlkioDeviceReadIOps, r.BlkioDeviceWriteIOps} {
		if slices.Contains(list, nil) {
			return cluster.Invalidf("a block device limit is null")
		}
	}
	if slices.Contains(r.BlkioWeightDevice, nil) {
		return cluster.Invalidf("a block device weight is null")
	}
	if slices.Contains(r.Ulimits, nil) {
		return cluster.Invalidf("a ulimit is null")
	}
	return nil
}

// validateWords refuses zero bytes, which end a word in the kernel, and lines in
// what is written to files line by line.
func validateWords(cfg *container.Config, hc *container.HostConfig) error {
	words := slices.Concat(cfg.Cmd, cfg.Entrypoint, cfg.Env, hc.GroupAdd, hc.Binds, []string{cfg.User, cfg.WorkingDir})
	for _, m := range hc.Mounts {
		words = append(words, m.Source, m.Target)
	}
	for _, d := range hc.Devices {
		words = append(words, d.PathOnHost, d.PathInContainer)
	}
	for dst, opts := range hc.Tmpfs {
		words = append(words, dst, opts)
	}
	for k, v := range hc.Sysctls {
		words = append(words, k, v)
	}
	if slices.ContainsFunc(words, func(s string) bool { return strings.IndexByte(s, 0) >= 0 }) {
		return cluster.Invalidf("no word of a command, variable, path, option, user or group may hold a zero byte")
	}
	for _, line := range slices.Concat(hc.ExtraHosts, hc.DNSSearch, hc.DNSOptions, []string{cfg.Hostname, cfg.Domainname}) {
		if strings.ContainsAny(line, "\x00\r\n") {
			return cluster.Invalidf("the host name or option %q holds a line break or a zero byte", line)
		}
	}
	for _, h := range hc.ExtraHosts {
		if name, addr, ok := strings.Cut(h, ":"); !ok || name == "" || addr == "" {
			return cluster.Invalidf("bad format for add-host: %q", h)
		}
	}
	if slices.Contains(strings.Split(hc.CgroupParent, "/"), "..") || strings.ContainsFunc(hc.CgroupParent, unicode.IsControl) {
		return cluster.Invalidf("invalid CgroupParent: %q", hc.CgroupParent)
	}
	return nil
}

func validateCPU(r *container.Resources) error {
	switch {
	case r.CPUPeriod != 0 && (r.CPUPeriod < minPeriod || r.CPUPeriod > maxPeriod):
		return cluster.Invalidf("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < minQuota:
		return cluster.Invalidf("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return cluster.Invalidf("shares can not be negative: %d", r.CPUShares)
	case r.CPURealtimePeriod < 0 || r.CPURealtimeRuntime < 0:
		return cluster.Invalidf("CPU real-time period and runtime can not be negative")
	case r.CpusetCpus != "" && !cpuSet.MatchString(r.CpusetCpus):
		return cluster.Invalidf("Invalid value %s for cpuset cpus", r.CpusetCpus)
	case r.CpusetMems != "" && !cpuSet.MatchString(r.CpusetMems):
		return cluster.Invalidf("Invalid value %s for cpuset mems", r.CpusetMems)
	}
	return nil
}

func validateWeights(r *container.Resources) error {
	bad := func(w uint16) bool { return w > 0 && (w < minWeight || w > maxWeight) }
	if bad(r.BlkioWeight) || slices.ContainsFunc(r.BlkioWeightDevice, func(d *blkiodev.WeightDevice) bool { return bad(d.Weight) }) {
		return cluster.Invalidf("Range of blkio weight is from %d to %d", minWeight, maxWeight)
	}
	return nil
}

// validateCaps refuses capabilities that no kernel knows. Those that only this
// kernel or this daemon lacks are left out at the start.
func validateCaps(hc *container.HostConfig) error {
	known := cap.Known()
	for flag, list := range map[string][]string{"CapAdd": hc.CapAdd, "CapDrop": hc.CapDrop} {
		for _, c := range list {
			if !isAll(c) && !slices.Contains(known, capName(c)) {
				return cluster.Invalidf("invalid %s: unknown capability: %q", flag, c)
			}
		}
	}
	return nil
}
