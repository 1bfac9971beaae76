package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/skep-dev/skep/internal/cluster"
)

// addFlags defines the daemon's flags on fs, bound to c.
func addFlags(fs *pflag.FlagSet, c *Config) {
	fs.StringArrayVarP(&c.Hosts, "host", "H", nil, "Daemon socket(s) to serve the API on (unix://PATH, tcp://ADDR:PORT, fd://)")
	fs.StringVarP(&c.Group, "group", "G", c.Group, "Group that owns the unix sockets")
	fs.StringVar(&c.DataRoot, "data-root", c.DataRoot, "Directory of everything that must survive a restart")
	fs.StringVar(&c.ExecRoot, "exec-root", c.ExecRoot, "Directory of what belongs to this boot")
	fs.StringVarP(&c.PidFile, "pidfile", "p", "", "File to write the daemon's process id to")
	fs.StringVar(&c.ConfigFile, "config-file", c.ConfigFile, "Configuration file (JSON)")
	fs.BoolVarP(&c.Debug, "debug", "D", false, "Log debug messages")
	fs.StringVarP(&c.LogLevel, "log-level", "l", c.LogLevel, "Least severe messages to log: debug, info, warn, error")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "Format of the daemon's log: text, json")
	fs.StringArrayVar(&c.Labels, "label", nil, "Labels of this engine (KEY=VALUE), for constraints")
	fs.StringArrayVar(&c.Insecure, "insecure-registry", nil, "Registries to reach without verified TLS (HOST[:PORT] or CIDR)")
	fs.StringArrayVar(&c.Mirrors, "registry-mirror", nil, "Mirrors to ask for Docker Hub's images first")
	fs.Var(listOf(&c.AddressPools, parsePool), "default-address-pool", "Pool for networks' subnets (base=CIDR,size=N)")
	fs.Var(textOf(&c.BridgeIP, netip.ParsePrefix), "bip", "Address and subnet of the default bridge (CIDR)")
	fs.StringVarP(&c.Bridge, "bridge", "b", "", "'none' to make no default bridge network")
	fs.IntVar(&c.MTU, "mtu", 0, "MTU of containers' networks (0: the host's)")
	fs.Var(listOf(&c.DNS, netip.ParseAddr), "dns", "DNS servers for containers")
	fs.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "DNS options for containers")
	fs.StringArrayVar(&c.DNSSearch, "dns-search", nil, "DNS search domains for containers")
	fs.BoolVar(&c.TLS, "tls", false, "Serve tcp:// with TLS; implied by --tlsverify")
	fs.BoolVar(&c.TLSVerify, "tlsverify", false, "Serve tcp:// with TLS and verify the clients")
	fs.StringVar(&c.TLSCA, "tlscacert", "", "Certificates of those who sign clients' certificates")
	fs.StringVar(&c.TLSCert, "tlscert", "", "TLS certificate file")
	fs.StringVar(&c.TLSKey, "tlskey", "", "TLS key file")
	fs.StringVar(&c.Containerd, "containerd", "", "Socket of an existing containerd to use for images and layers")
	fs.StringVar(&c.ContainerdNamespace, "containerd-namespace", c.ContainerdNamespace, "containerd namespace to use")
	fs.StringVar(&c.CgroupParent, "cgroup-parent", "", "Parent cgroup of all containers")
	fs.StringVar(&c.LogDriver, "log-driver", c.LogDriver, "Log driver of containers that name none")
	fs.StringToStringVar(&c.LogOpts, "log-opt", nil, "Log driver options of containers that name none")
	fs.Var(&ulimitValue{&c.Ulimits}, "default-ulimit", "Limits of containers that name none (NAME=SOFT[:HARD])")
	fs.BoolVar(&c.Init, "init", false, "Run an init above the command of containers that do not say, to forward signals and reap processes")
	fs.StringVar(&c.DefaultAdvertiseAddr, "swarm-default-advertise-addr", "", "Address or interface that a swarm's other nodes reach this one by")
	fs.BoolVar(&c.Experimental, "experimental", false, "Show experimental features")
	fs.StringVar(&c.HTTPProxy, "http-proxy", "", "HTTP proxy for the daemon's own requests")
	fs.StringVar(&c.HTTPSProxy, "https-proxy", "", "HTTPS proxy for the daemon's own requests")
	fs.StringVar(&c.NoProxy, "no-proxy", "", "Hosts to reach without a proxy")
	fs.Bool("validate", false, "Check the configuration and exit")
	for _, name := range ignored {
		name, isBool := strings.CutSuffix(name, "?")
		fs.Var(&ignoredValue{}, name, "Accepted for dockerd's sake, without effect")
		fs.Lookup(name).Hidden = true
		if isBool {
			fs.Lookup(name).NoOptDefVal = "true"
		}
	}
}

// ignored are dockerd's flags that have no meaning or no effect here; one that
// may stand without a value ends in a question mark. Some switch something on
// that is always so (live-restore).
var ignored = []string{
	"allow-direct-routing?", "allow-nondistributable-artifacts", "api-cors-header", "authorization-plugin",
	"bridge-accept-fwmark", "cdi-spec-dir", "cluster-advertise", "cluster-store", "cluster-store-opt", "cpu-rt-period",
	"cpu-rt-runtime", "cri-containerd?", "default-cgroupns-mode", "default-gateway", "default-gateway-v6",
	"default-ipc-mode", "default-network-opt", "default-runtime", "default-shm-size", "deprecated-key-path", "exec-opt",
	"feature", "firewall-backend", "fixed-cidr", "fixed-cidr-v6", "host-gateway-ip", "icc?", "init-path", "ip", "ip-forward?",
	"ip-forward-no-drop?", "ip-masq?", "ip6tables?", "iptables?", "ipv6?", "live-restore?", "max-concurrent-downloads",
	"max-concurrent-uploads", "max-download-attempts", "metrics-addr", "network-control-plane-mtu",
	"network-diagnostic-port", "no-new-privileges?", "node-generic-resource", "oom-score-adjust", "raw-logs?", "runtime",
	"seccomp-profile", "selinux-enabled?", "shutdown-timeout", "storage-driver", "storage-opt", "swarm-default-data-path-addr",
	"userland-proxy?", "userland-proxy-path", "userns-remap",
}

// fileKeys are the keys of daemon.json that are not simply their flag's name.
var fileKeys = map[string]string{
	"hosts": "host", "labels": "label", "insecure-registries": "insecure-registry", "registry-mirrors": "registry-mirror",
	"default-address-pools": "default-address-pool", "dns-opts": "dns-opt", "log-opts": "log-opt",
	"default-ulimits": "default-ulimit", "features": "feature", "storage-opts": "storage-opt", "exec-opts": "exec-opt",
	"node-generic-resources": "node-generic-resource", "runtimes": "runtime", "authorization-plugins": "authorization-plugin",
	"cdi-spec-dirs": "cdi-spec-dir", "default-network-opts": "default-network-opt", "graph": "data-root",
}

// load completes flags that were parsed already by the environment and the
// file, in this order, and reports which known settings have no effect.
func load(fs *pflag.FlagSet, c *Config, getenv func(string) string) (unused []string, err error) {
	fs.VisitAll(func(f *pflag.Flag) {
		name := "SKEP_DAEMON_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(name); v != "" && !f.Changed && err == nil {
			if e := setAll(fs, f.Name, []string{v}); e != nil {
				err = cluster.Invalidf("%s: %v", name, e)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if err := loadFile(fs, c.ConfigFile); err != nil {
		return nil, err
	}
	for _, name := range ignored {
		name = strings.TrimSuffix(name, "?")
		if f := fs.Lookup(name); f.Changed {
			unused = append(unused, name)
		}
	}
	return unused, c.Validate()
}

// loadFile sets what the file says and no flag did. A file that is absent is
// fine, unless it was asked for.
func loadFile(flags *pflag.FlagSet, path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !flags.Changed("config-file") {
		return nil
	}
	if err != nil {
		return err
	}
	var file map[string]json.RawMessage
	if len(strings.TrimSpace(string(raw))) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return cluster.Invalidf("%s: %v", path, err)
	}
	said := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) { said[f.Name] = f.Changed })
	keys := make([]string, 0, len(file))
	for k := range file {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, key := range keys {
		if key == "proxies" {
			if err := loadProxies(flags, said, file[key]); err != nil {
				return cluster.Invalidf("%s: %s: %v", path, key, err)
			}
			continue
		}
		name, renamed := fileKeys[key]
		if !renamed {
			name = key
		}
		if said[name] {
			continue
		}
		if flags.Lookup(name) == nil || name == "config-file" {
			return cluster.Invalidf("%s: the following directives don't match any configuration option: %s", path, key)
		}
		values, err := fileValues(key, file[key])
		if err == nil {
			err = setAll(flags, name, values)
		}
		if err != nil {
			return cluster.Invalidf("%s: %s: %v", path, key, err)
		}
	}
	return nil
}

// loadProxies sets the proxies, which the file alone keeps in an object.
func loadProxies(flags *pflag.FlagSet, said map[string]bool, raw json.RawMessage) error {
	var proxies map[string]string
	if err := json.Unmarshal(raw, &proxies); err != nil {
		return err
	}
	for _, name := range []string{"http-proxy", "https-proxy", "no-proxy"} {
		if v := proxies[name]; v != "" && !said[name] {
			if err := flags.Set(name, v); err != nil {
				return err
			}
		}
		delete(proxies, name)
	}
	for name := range proxies {
		return fmt.Errorf("unknown proxy setting %q", name)
	}
	return nil
}

func setAll(flags *pflag.FlagSet, name string, values []string) error {
	for _, v := range values {
		if err := flags.Set(name, v); err != nil {
			return err
		}
	}
	return nil
}

// fileValues turns a value of the file into what would be typed for its flag:
// lists are the flag repeated, objects KEY=VALUE.
func fileValues(key string, raw json.RawMessage) ([]string, error) {
	switch key {
	case "default-address-pools":
		var pools []struct {
			Base string
			Size int
		}
		err := json.Unmarshal(raw, &pools)
		var out []string
		for _, p := range pools {
			out = append(out, fmt.Sprintf("base=%s,size=%d", p.Base, p.Size))
		}
		return out, err
	case "default-ulimits":
		var limits map[string]units.Ulimit
		err := json.Unmarshal(raw, &limits)
		var out []string
		for name, l := range limits {
			out = append(out, fmt.Sprintf("%s=%d:%d", name, l.Soft, l.Hard))
		}
		return out, err
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	return typed(v), nil
}

func typed(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		var out []string
		for _, e := range v {
			out = append(out, typed(e)...)
		}
		return out
	case map[string]any:
		var out []string
		for k, e := range v {
			out = append(out, k+"="+strings.Join(typed(e), ","))
		}
		slices.Sort(out)
		return out
	case float64:
		return []string{fmt.Sprintf("%v", int64(v))}
	default:
		return []string{fmt.Sprint(v)}
	}
}

// noteUnused logs which settings were accepted and do nothing.
func noteUnused(log *slog.Logger, names []string) {
	for _, n := range names {
		if n == "live-restore" {
			log.Info("containers always live on while the daemon is down", "setting", n)
			continue
		}
		log.Info("setting has no effect", "setting", n)
	}
}
