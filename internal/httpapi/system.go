package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	imagestore "github.com/skep-dev/skep/internal/image"
)

// Host holds the facts about this host and daemon that do not change while it
// runs: what /version and /info tell beside the counts.
type Host struct {
	ID              string // stable over restarts
	Name            string
	Version         string
	GitCommit       string
	BuildTime       string
	DataRoot        string
	Labels          []string
	Experimental    bool
	Debug           bool
	KernelVersion   string
	OperatingSystem string
	OSVersion       string
	Architecture    string // as uname has it: x86_64
	CPUs            int
	Memory          int64
	CgroupVersion   string
	HTTPProxy       string
	HTTPSProxy      string
	NoProxy         string
	Insecure        []string // registries spoken to without (verified) TLS: host[:port] or CIDR
	Mirrors         []string
	AddressPools    []system.NetworkAddressPool
	Containerd      string // its version
	Runc            string // its version
	Init            string // its version
	Warnings        []string
}

func (s *Server) systemRoutes() []route {
	return []route{
		{"GET /_ping", s.ping}, // answers HEAD too
		{"GET /version", s.version},
		{"GET /info", s.info},
		{"GET /events", s.events},
		{"GET /system/df", s.diskUsage},
		{"POST /auth", absent("checking credentials with a registry (docker login)")},
	}
}

func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", string(build.BuilderV1))
	h.Set("Swarm", s.swarmHeader(r.Context()))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	host := s.Host
	engineDetails := map[string]string{
		"ApiVersion": MaxAPIVersion, "MinAPIVersion": MinAPIVersion, "Os": runtime.GOOS, "Arch": runtime.GOARCH,
		"GoVersion": runtime.Version(), "GitCommit": host.GitCommit, "BuildTime": host.BuildTime,
		"KernelVersion": host.KernelVersion, "Experimental": boolString(host.Experimental),
	}
	v := system.VersionResponse{
		Platform:   system.PlatformInfo{Name: "skep"},
		Version:    host.Version,
		APIVersion: MaxAPIVersion, MinAPIVersion: MinAPIVersion,
		Os: runtime.GOOS, Arch: runtime.GOARCH,
		Components: []system.ComponentVersion{
			{Name: "Engine", Version: host.Version, Details: engineDetails},
			{Name: "containerd", Version: host.Containerd, Details: map[string]string{"GitCommit": ""}},
			{Name: "runc", Version: host.Runc, Details: map[string]string{"GitCommit": ""}},
			{Name: "docker-init", Version: host.Init, Details: map[string]string{"GitCommit": ""}},
		},
		GitCommit: host.GitCommit, GoVersion: runtime.Version(), KernelVersion: host.KernelVersion,
		Experimental: host.Experimental, BuildTime: host.BuildTime,
	}
	return writeJSON(w, http.StatusOK, v)
}

func boolString(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	info := s.hostInfo()
	info.Swarm = s.Member.Info(r.Context())
	list, err := s.Containers.List(r.Context(), engine.ListOptions{All: true})
	if err != nil {
		return err
	}
	info.Containers = len(list)
	for _, c := range list {
		switch c.State {
		case container.StateRunning, container.StateRestarting:
			info.ContainersRunning++
		case container.StatePaused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
	images, err := s.Images.List(r.Context(), imagestore.ListOptions{})
	if err != nil {
		return err
	}
	info.Images = len(images)
	return writeJSON(w, http.StatusOK, info)
}

// hostInfo is the part of /info that needs no other room.
func (s *Server) hostInfo() system.Info {
	h := s.Host
	return system.Info{
		ID:           h.ID,
		Driver:       "overlayfs",
		DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins: system.PluginsInfo{
			Volume:  []string{"local"},
			Network: []string{"bridge", "host", "null", "overlay"},
			Log:     []string{"json-file", "local"},
		},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true,
		CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding:     sysctlOn("net/ipv4/ip_forward"),
		Debug:              h.Debug,
		NFd:                openFiles(),
		NGoroutines:        runtime.NumGoroutine(),
		SystemTime:         time.Now().UTC().Format(time.RFC3339Nano),
		LoggingDriver:      "json-file",
		CgroupDriver:       "cgroupfs",
		CgroupVersion:      h.CgroupVersion,
		OomKillDisable:     h.CgroupVersion == "1",
		KernelVersion:      h.KernelVersion,
		OperatingSystem:    h.OperatingSystem,
		OSVersion:          h.OSVersion,
		OSType:             runtime.GOOS,
		Architecture:       h.Architecture,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryConfig(h.Insecure, h.Mirrors),
		NCPU:               h.CPUs,
		MemTotal:           h.Memory,
		DockerRootDir:      h.DataRoot,
		HTTPProxy:          h.HTTPProxy, HTTPSProxy: h.HTTPSProxy, NoProxy: h.NoProxy,
		Name:              h.Name,
		Labels:            append([]string{}, h.Labels...),
		ExperimentalBuild: h.Experimental,
		ServerVersion:     h.Version,
		Runtimes: map[string]system.RuntimeWithStatus{
			"runc":                  {Runtime: system.Runtime{Path: "runc"}},
			"io.containerd.runc.v2": {Runtime: system.Runtime{Path: "runc"}},
		},
		DefaultRuntime:      "runc",
		LiveRestoreEnabled:  true,
		ContainerdCommit:    system.Commit{ID: h.Containerd},
		RuncCommit:          system.Commit{ID: h.Runc},
		InitBinary:          "docker-init",
		InitCommit:          system.Commit{ID: h.Init},
		SecurityOptions:     []string{"name=seccomp,profile=builtin"},
		DefaultAddressPools: h.AddressPools,
		FirewallBackend:     &system.FirewallInfo{Driver: "nftables"},
		CDISpecDirs:         []string{},
		Warnings:            h.Warnings,
	}
}

// registryConfig sorts the insecure registries into address ranges and names,
// as /info shows them. Loopback is always insecure.
func registryConfig(insecure, mirrors []string) *registry.ServiceConfig {
	cfg := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: append([]string{}, mirrors...), Secure: true, Official: true},
		},
		Mirrors: append([]string{}, mirrors...),
	}
	for _, name := range insecure {
		if p, err := netip.ParsePrefix(name); err == nil {
			cfg.InsecureRegistryCIDRs = append(cfg.InsecureRegistryCIDRs, p)
			continue
		}
		cfg.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	return cfg
}

func sysctlOn(path string) bool {
	b, err := os.ReadFile("/proc/sys/" + path)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

func openFiles() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names)
}

// diskUsage answers system df in the shape of the client's version: totals for
// each kind of object from 1.52 on, plain lists up to 1.52.
func (s *Server) diskUsage(w http.ResponseWriter, r *http.Request) error {
	want := map[string]bool{}
	for _, t := range r.URL.Query()["type"] {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
			want[t] = true
		default:
			return cluster.Invalidf("unknown object type: %s", t)
		}
	}
	all := len(want) == 0
	verbose := boolParam(r.URL.Query(), "verbose")
	var du system.DiskUsage
	var err error
	if all || want[string(system.ContainerObject)] {
		if du.ContainerUsage, err = s.containerUsage(r.Context()); err != nil {
			return err
		}
	}
	if all || want[string(system.ImageObject)] {
		if du.ImageUsage, err = s.imageUsage(r.Context()); err != nil {
			return err
		}
	}
	if all || want[string(system.VolumeObject)] {
		if du.VolumeUsage, err = s.volumeUsage(r.Context()); err != nil {
			return err
		}
	}
	if all || want[string(system.BuildCacheObject)] {
		du.BuildCacheUsage = &build.DiskUsage{}
	}
	if before(r, "1.52") {
		return writeJSON(w, http.StatusOK, legacyUsage(du))
	}
	if !verbose {
		dropItems(&du)
	}
	return writeJSON(w, http.StatusOK, du)
}

func dropItems(du *system.DiskUsage) {
	if du.ContainerUsage != nil {
		du.ContainerUsage.Items = nil
	}
	if du.ImageUsage != nil {
		du.ImageUsage.Items = nil
	}
	if du.VolumeUsage != nil {
		du.VolumeUsage.Items = nil
	}
}

func legacyUsage(du system.DiskUsage) map[string]any {
	old := map[string]any{}
	if du.ContainerUsage != nil {
		old["Containers"] = orEmpty(du.ContainerUsage.Items)
	}
	if du.ImageUsage != nil {
		old["Images"] = orEmpty(du.ImageUsage.Items)
		old["LayersSize"] = du.ImageUsage.TotalSize
	}
	if du.VolumeUsage != nil {
		old["Volumes"] = orEmpty(du.VolumeUsage.Items)
	}
	if du.BuildCacheUsage != nil {
		old["BuildCache"] = []build.CacheRecord{}
		old["BuilderSize"] = 0
	}
	return old
}

// orEmpty makes a nil list an empty one, which JSON writes as [] and not null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *Server) containerUsage(ctx context.Context) (*container.DiskUsage, error) {
	list, err := s.Containers.List(ctx, engine.ListOptions{All: true, Size: true})
	if err != nil {
		return nil, err
	}
	u := &container.DiskUsage{Items: list, TotalCount: int64(len(list))}
	for _, c := range list {
		u.TotalSize += c.SizeRw
		switch c.State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += c.SizeRw
		}
	}
	return u, nil
}

func (s *Server) imageUsage(ctx context.Context) (*image.DiskUsage, error) {
	list, err := s.imageList(ctx, imagestore.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	u := &image.DiskUsage{Items: list, TotalCount: int64(len(list))}
	for i, img := range list {
		list[i].SharedSize = max(img.SharedSize, 0) // -1 (not counted) would make clients count no image as used
		u.TotalSize += img.Size
		if img.Containers > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += img.Size
		}
	}
	return u, nil
}

func (s *Server) volumeUsage(ctx context.Context) (*volume.DiskUsage, error) {
	list, err := s.Volumes.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	used, err := s.volumesInUse(ctx)
	if err != nil {
		return nil, err
	}
	u := &volume.DiskUsage{TotalCount: int64(len(list.Volumes))}
	for _, v := range list.Volumes {
		size := treeSize(v.Mountpoint)
		v.UsageData = &volume.UsageData{Size: size, RefCount: int64(used[v.Name])}
		u.Items = append(u.Items, v)
		u.TotalSize += size
		if used[v.Name] > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += size
		}
	}
	return u, nil
}

// isPredefined reports whether a network is one of the host's own three.
func isPredefined(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone
}
