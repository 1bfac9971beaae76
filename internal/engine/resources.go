package engine

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// resources sets the limits and the devices of a container.
func (e *Engine) resources(rec record, s *specs.Spec) error {
	hc := rec.HostConfig
	blkio, err := blockIO(hc.Resources)
	if err != nil {
		return err
	}
	s.Linux.Resources = &specs.LinuxResources{
		CPU:     cpuLimits(hc.Resources),
		Memory:  e.memoryLimits(hc.Resources),
		Pids:    pidsLimit(hc.Resources),
		BlockIO: blkio,
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if hc.Privileged {
		return allDevices(s)
	}
	for _, d := range hc.Devices {
		if err := addDevice(s, d); err != nil {
			return err
		}
	}
	for _, rule := range hc.DeviceCgroupRules {
		r, err := parseDeviceRule(rule)
		if err != nil {
			return err
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
	}
	return nil
}

func cpuLimits(r container.Resources) *specs.LinuxCPU {
	cpu := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		cpu.Shares = &shares
	}
	if r.NanoCPUs > 0 {
		period := uint64(100_000)
		quota := r.NanoCPUs * int64(period) / 1e9
		cpu.Period, cpu.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		period := uint64(r.CPUPeriod)
		cpu.Period = &period
	}
	if r.CPUQuota != 0 {
		cpu.Quota = &r.CPUQuota
	}
	if r.CPURealtimePeriod != 0 {
		p := uint64(r.CPURealtimePeriod)
		cpu.RealtimePeriod = &p
	}
	if r.CPURealtimeRuntime != 0 {
		cpu.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	return &cpu
}

func (e *Engine) memoryLimits(r container.Resources) *specs.LinuxMemory {
	m := specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
		if r.MemorySwap == 0 {
			if swap := 2 * r.Memory; e.host.countsSwap() {
				m.Swap = &swap // as much swap again, as Docker does
			}
		}
	}
	if r.MemorySwap != 0 && e.host.countsSwap() {
		m.Swap = &r.MemorySwap
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		v := uint64(*r.MemorySwappiness)
		m.Swappiness = &v
	}
	m.DisableOOMKiller = r.OomKillDisable
	return &m
}

// countsSwap reports whether this kernel can limit swap by cgroup.
func (h host) countsSwap() bool {
	return h.unified || unix.Access(filepath.Join(h.cgroups, "memory/memory.memsw.limit_in_bytes"), unix.F_OK) == nil
}

func pidsLimit(r container.Resources) *specs.LinuxPids {
	if r.PidsLimit == nil || *r.PidsLimit <= 0 {
		return nil
	}
	return &specs.LinuxPids{Limit: r.PidsLimit}
}

func blockIO(r container.Resources) (*specs.LinuxBlockIO, error) {
	b := specs.LinuxBlockIO{}
	if r.BlkioWeight > 0 {
		b.Weight = &r.BlkioWeight
	}
	for _, w := range r.BlkioWeightDevice {
		major, minor, err := deviceNumber(w.Path)
		if err != nil {
			return nil, err
		}
		d := specs.LinuxWeightDevice{Weight: &w.Weight}
		d.Major, d.Minor = major, minor
		b.WeightDevice = append(b.WeightDevice, d)
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice}, {r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice}, {r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, dev := range t.from {
			major, minor, err := deviceNumber(dev.Path)
			if err != nil {
				return nil, err
			}
			d := specs.LinuxThrottleDevice{Rate: dev.Rate}
			d.Major, d.Minor = major, minor
			*t.to = append(*t.to, d)
		}
	}
	return &b, nil
}

func deviceNumber(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, cluster.Invalidf("%s: %s", path, err)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// allDevices gives a privileged container the host's devices.
func allDevices(s *specs.Spec) error {
	devs, err := oci.HostDevices()
	if err != nil {
		return err
	}
	s.Linux.Devices = devs
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	return nil
}

func addDevice(s *specs.Spec, d container.DeviceMapping) error {
	dev, err := oci.DeviceFromPath(d.PathOnHost)
	if err != nil {
		return cluster.Invalidf("error gathering device information while adding custom device %q: %s", d.PathOnHost, err)
	}
	if d.PathInContainer != "" {
		dev.Path = d.PathInContainer
	}
	access := d.CgroupPermissions
	if access == "" {
		access = "rwm"
	}
	s.Linux.Devices = append(s.Linux.Devices, *dev)
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
		Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: access,
	})
	return nil
}

var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	m := deviceRule.FindStringSubmatch(rule)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, cluster.Invalidf("invalid device cgroup rule format: '%s'", rule)
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for i, to := range []**int64{&r.Major, &r.Minor} {
		if text := m[2+i]; text != "*" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return r, fmt.Errorf("device rule %q: %w", rule, err)
			}
			*to = &n
		}
	}
	return r, nil
}
