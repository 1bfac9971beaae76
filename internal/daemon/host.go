package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	containerd "github.com/containerd/containerd/v2/version"
	"github.com/google/uuid"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/httpapi"
	parts "github.com/skep-dev/skep/internal/runtime"
	"github.com/skep-dev/skep/internal/version"
)

// runcVersion is that of the runc inside the binary, which third_party/runc pins.
const runcVersion = "1.5.2"

// hostFacts gathers what /info and /version tell about this host.
func hostFacts(c *Config) (httpapi.Host, error) {
	id, err := engineID(filepath.Join(c.DataRoot, "engine-id"))
	if err != nil {
		return httpapi.Host{}, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return httpapi.Host{}, err
	}
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err != nil {
		return httpapi.Host{}, err
	}
	h := httpapi.Host{
		ID: id, Name: cString(uts.Nodename[:]),
		Version: version.Version, GitCommit: version.Commit,
		DataRoot: c.DataRoot, Labels: c.Labels, Experimental: c.Experimental, Debug: c.Debug,
		KernelVersion: cString(uts.Release[:]), Architecture: cString(uts.Machine[:]),
		CPUs: runtime.NumCPU(), Memory: int64(mem.Totalram) * int64(mem.Unit),
		CgroupVersion: cgroupVersion(),
		HTTPProxy:     c.HTTPProxy, HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
		Insecure: c.Insecure, Mirrors: c.Mirrors,
		Containerd: strings.TrimSuffix(containerd.Version, "+unknown"), Runc: runcVersion,
		Init: parts.InitVersion(),
	}
	h.OperatingSystem, h.OSVersion = osRelease()
	for _, p := range c.AddressPools {
		h.AddressPools = append(h.AddressPools, system.NetworkAddressPool{Base: p.Base, Size: p.Size})
	}
	return h, nil
}

// engineID reads the id this daemon made up at its first start.
func engineID(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil && len(bytes.TrimSpace(raw)) > 0 {
		return string(bytes.TrimSpace(raw)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := uuid.NewString()
	return id, os.WriteFile(path, []byte(id+"\n"), 0o600)
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func cgroupVersion() string {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return "2"
	}
	return "1"
}

// osRelease reads the distribution's name and version.
func osRelease() (name, version string) {
	raw, err := os.ReadFile("/etc/os-release")
	if err != nil {
		if raw, err = os.ReadFile("/usr/lib/os-release"); err != nil {
			return "Linux", ""
		}
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "PRETTY_NAME":
			name = value
		case "VERSION_ID":
			version = value
		}
	}
	if name == "" {
		name = "Linux"
	}
	return name, version
}

// makeDirs makes the daemon's own directories. Others may pass through them (a
// container's user reaches its mounts) and list nothing.
func makeDirs(c *Config) error {
	for _, dir := range []string{c.DataRoot, c.ExecRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("directory of the daemon: %w", err)
		}
	}
	return nil
}

// setProxies puts the proxies where Go's HTTP client looks for them, before its
// first request.
func setProxies(c *Config) error {
	for name, v := range map[string]string{"HTTP_PROXY": c.HTTPProxy, "HTTPS_PROXY": c.HTTPSProxy, "NO_PROXY": c.NoProxy} {
		if v == "" {
			continue
		}
		if err := os.Setenv(name, v); err != nil {
			return err
		}
	}
	return nil
}
