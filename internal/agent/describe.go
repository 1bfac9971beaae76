package agent

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// Describe says what this node is, as it tells managers: its platform in uname's
// words, its processors and memory, its engine.
func Describe(hostname, engineVersion string, labels map[string]string) (swarm.NodeDescription, error) {
	memory, err := memTotal("/proc/meminfo")
	if err != nil {
		return swarm.NodeDescription{}, err
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i686"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	d := swarm.NodeDescription{
		Hostname:  hostname,
		Platform:  swarm.Platform{Architecture: arch, OS: runtime.GOOS},
		Resources: swarm.Resources{NanoCPUs: int64(runtime.NumCPU()) * 1e9, MemoryBytes: memory},
		Engine:    swarm.EngineDescription{EngineVersion: engineVersion, Labels: labels},
	}
	for _, p := range [][2]string{
		{"Log", "json-file"}, {"Log", "local"}, {"Network", "bridge"}, {"Network", "host"}, {"Network", "null"}, {"Network", "overlay"}, {"Volume", "local"},
	} {
		d.Engine.Plugins = append(d.Engine.Plugins, swarm.PluginDescription{Type: p[0], Name: p[1]})
	}
	return d, nil
}

// memTotal reads the bytes of memory that the kernel has.
func memTotal(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s does not say how much memory there is", path)
}
