package engine

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"github.com/skep-dev/skep/internal/cluster"
)

const minMemory = 6 << 20

const defaultShm = 64 << 20

// validate checks what was asked for, fills in defaults, and returns warnings.
func (e *Engine) validate(rec *record, req CreateRequest) (warnings []string, err error) {
	warnings = []string{}
	hc := rec.HostConfig
	checks := []func() error{
		func() error { return validateProcess(rec.Config) },
		func() error { return validateBounds(rec.Config, hc) },
		func() error { return e.validatePolicies(hc) },
		func() error { return e.validateResources(&hc.Resources) },
		func() error { return e.validateModes(hc) },
		func() error { return e.setEndpoints(rec, req.Request.NetworkingConfig) },
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if hc.ShmSize == 0 {
		hc.ShmSize = defaultShm
	}
	if hc.OomKillDisable != nil && *hc.OomKillDisable && hc.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	if rec.Platform.Architecture != "" && req.Platform != nil && req.Platform.Architecture != "" && req.Platform.Architecture != rec.Platform.Architecture {
		return nil, cluster.NotFoundf("image with reference %s was found but its platform (%s/%s) does not match the specified platform (%s/%s)",
			rec.ImageName, rec.Platform.OS, rec.Platform.Architecture, req.Platform.OS, req.Platform.Architecture)
	}
	return warnings, nil
}

func validateProcess(cfg *container.Config) error {
	if wd := cfg.WorkingDir; wd != "" {
		if !path.IsAbs(wd) {
			return cluster.Invalidf("the working directory '%s' is invalid, it needs to be an absolute path", wd)
		}
		cfg.WorkingDir = path.Clean(wd)
	}
	for _, kv := range cfg.Env {
		if strings.HasPrefix(kv, "=") || kv == "" {
			return cluster.Invalidf("invalid environment variable: %s", kv)
		}
	}
	if cfg.StopSignal != "" {
		if _, err := signal.ParseSignal(cfg.StopSignal); err != nil {
			return cluster.Invalidf("%s", err)
		}
	}
	h := cfg.Healthcheck
	if h == nil {
		return nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < container.MinimumDuration {
			return cluster.Invalidf("%s in Healthcheck cannot be less than %s", name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return cluster.Invalidf("Retries in Healthcheck cannot be negative")
	}
	return nil
}

func (e *Engine) validatePolicies(hc *container.HostConfig) error {
	if hc.RestartPolicy.Name == "" {
		hc.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return cluster.Invalidf("%s", err)
	}
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return cluster.Invalidf("can't create 'AutoRemove' container with restart policy")
	}
	if err := e.validateLogConfig(&hc.LogConfig); err != nil {
		return err
	}
	switch hc.Runtime {
	case "", "runc", "io.containerd.runc.v2":
		hc.Runtime = "runc"
	default:
		return cluster.Invalidf("unknown or invalid runtime name: %s", hc.Runtime)
	}
	return nil
}

func (e *Engine) validateResources(r *container.Resources) error {
	if r.Memory != 0 && r.Memory < minMemory {
		return cluster.Invalidf("Minimum memory limit allowed is 6MB")
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return cluster.Invalidf("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 {
		return cluster.Invalidf("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.MemoryReservation > 0 && r.Memory > 0 && r.Memory < r.MemoryReservation {
		return cluster.Invalidf("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0) {
		return cluster.Invalidf("Conflicting options: Nano CPUs and CPU Period or CPU Quota cannot both be set")
	}
	if r.NanoCPUs < 0 || r.NanoCPUs > int64(e.host.cpus)*1e9 {
		return cluster.Invalidf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", e.host.cpus, e.host.cpus)
	}
	if r.PidsLimit != nil && *r.PidsLimit < -1 {
		return cluster.Invalidf("Invalid value for pids limit: %d", *r.PidsLimit)
	}
	if len(r.DeviceRequests) > 0 {
		return cluster.NotImplementedf("could not select device driver %q with capabilities: %v: device requests are not built yet", r.DeviceRequests[0].Driver, r.DeviceRequests[0].Capabilities)
	}
	for _, u := range r.Ulimits {
		if u.Soft > u.Hard && u.Hard != -1 {
			return cluster.Invalidf("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		if _, ok := rlimitOf[u.Name]; !ok {
			return cluster.Invalidf("invalid ulimit type: %s", u.Name)
		}
	}
	return nil
}

func (e *Engine) validateModes(hc *container.HostConfig) error {
	switch {
	case !hc.UsernsMode.Valid():
		return cluster.Invalidf("invalid userns mode: %q", hc.UsernsMode)
	case !hc.PidMode.Valid():
		return cluster.Invalidf("invalid PID mode: %s", hc.PidMode)
	case !hc.UTSMode.Valid():
		return cluster.Invalidf("invalid UTS mode: %s", hc.UTSMode)
	case !hc.IpcMode.Valid():
		return cluster.Invalidf("invalid IPC mode: %s", hc.IpcMode)
	case !hc.CgroupnsMode.Valid():
		return cluster.Invalidf("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	case !hc.Isolation.IsDefault():
		return cluster.Invalidf("invalid isolation (%s): linux does not support %s isolation", hc.Isolation, hc.Isolation)
	case len(hc.StorageOpt) > 0:
		return cluster.Invalidf("--storage-opt is not supported by the storage driver %s", e.layers.Snapshotter)
	case hc.Cgroup != "":
		return cluster.NotImplementedf("a shared cgroup (--cgroup) is not built yet")
	}
	if hc.CgroupnsMode.IsEmpty() {
		hc.CgroupnsMode = container.CgroupnsModePrivate
	}
	if hc.IpcMode.IsEmpty() {
		hc.IpcMode = container.IPCModePrivate
	}
	for name := range hc.Sysctls {
		if strings.HasPrefix(name, "net.") && hc.NetworkMode.IsHost() {
			return cluster.Invalidf("sysctl '%s' not allowed in host network namespace", name)
		}
	}
	_, err := parseSecurity(hc.SecurityOpt)
	return err
}

// setEndpoints turns the network mode and the endpoints asked for into the
// container's networks, the primary one first.
func (e *Engine) setEndpoints(rec *record, nc *apinetwork.NetworkingConfig) error {
	hc := rec.HostConfig
	if rec.Config.NetworkDisabled {
		hc.NetworkMode = apinetwork.NetworkNone
	}
	if hc.NetworkMode == "" || hc.NetworkMode.IsDefault() {
		hc.NetworkMode = apinetwork.NetworkBridge
	}
	asked := map[string]*apinetwork.EndpointSettings{}
	if nc != nil {
		for name, s := range nc.EndpointsConfig {
			if s == nil {
				s = &apinetwork.EndpointSettings{}
			}
			if name == apinetwork.NetworkDefault {
				name = apinetwork.NetworkBridge
			}
			asked[name] = s.Copy()
		}
	}
	if hc.NetworkMode.IsContainer() {
		if rec.Config.Hostname != "" {
			return cluster.Invalidf("conflicting options: hostname and the network mode")
		}
		if len(hc.PortBindings) > 0 || hc.PublishAllPorts {
			return cluster.Invalidf("conflicting options: port publishing and the container type network mode")
		}
		_, err := e.find(hc.NetworkMode.ConnectedContainer())
		return err
	}
	mode := string(hc.NetworkMode)
	first := asked[mode]
	if first == nil && len(asked) > 0 {
		// A swarm's task names its networks only here.
		if names := slices.Sorted(maps.Keys(asked)); rec.Swarm {
			mode, first = names[0], asked[names[0]]
			hc.NetworkMode = container.NetworkMode(mode)
		}
	}
	if first == nil {
		first = &apinetwork.EndpointSettings{}
	}
	delete(asked, mode)
	rec.Endpoints = []endpoint{{Network: mode, Settings: first, MAC: first.MacAddress}}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		rec.Endpoints = append(rec.Endpoints, endpoint{Network: name, Settings: asked[name], MAC: asked[name].MacAddress})
	}
	if e.cfg.Networks == nil && mode != apinetwork.NetworkNone && mode != apinetwork.NetworkHost {
		return cluster.Unavailablef("network %s: this engine has no networks", mode)
	}
	return nil
}

// security is what --security-opt asks for.
type security struct {
	seccomp       string // "", "unconfined" or a profile
	noNewPrivs    bool
	openSysPaths  bool
	writableCgrps bool
}

func parseSecurity(opts []string) (s security, err error) {
	for _, opt := range opts {
		k, v, ok := strings.Cut(opt, "=")
		if !ok {
			k, v, ok = strings.Cut(opt, ":")
		}
		switch {
		case k == "no-new-privileges":
			s.noNewPrivs = true
			if ok {
				if s.noNewPrivs, err = strconv.ParseBool(v); err != nil {
					return s, cluster.Invalidf("invalid --security-opt 2: %q", opt)
				}
			}
		case k == "seccomp" && ok:
			s.seccomp = v
		case k == "systempaths" && v == "unconfined":
			s.openSysPaths = true
		case k == "writable-cgroups" && ok:
			s.writableCgrps = v == "true"
		case k == "apparmor" && (v == "unconfined" || v == ""), k == "label":
			// Neither is in force here.
		case k == "apparmor":
			return s, cluster.Invalidf("AppArmor is not enabled on this host: %q", opt)
		default:
			return s, cluster.Invalidf("invalid --security-opt 2: %q", opt)
		}
	}
	return s, nil
}
