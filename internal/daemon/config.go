// Package daemon is `skep daemon`: its configuration and the wiring of the rooms
// that make up one host's daemon, under one group that lives and dies together.
// It holds no logic of its own. cmd/skep calls it.
package daemon

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/skep-dev/skep/internal/cluster"
)

// The places a daemon uses unless told otherwise.
const (
	DefaultDataRoot   = "/var/lib/skep"
	DefaultExecRoot   = "/run/skep"
	DefaultConfigFile = "/etc/skep/daemon.json"
)

// AddressPool is a range that networks get their subnets from, each of the
// given prefix length.
type AddressPool struct {
	Base netip.Prefix
	Size int
}

// Config is everything the daemon can be told. A flag beats the environment,
// which beats the file; the zero values of a Config made by Default are dockerd's.
type Config struct {
	Hosts      []string // where the API listens: unix://, tcp://, fd://
	Group      string   // owns the unix sockets
	DataRoot   string
	ExecRoot   string
	PidFile    string
	ConfigFile string

	Debug     bool
	LogLevel  string
	LogFormat string

	Labels       []string // of the engine: node.platform and constraints engine.labels.*
	Insecure     []string
	Mirrors      []string
	AddressPools []AddressPool
	BridgeIP     netip.Prefix // the default bridge's address and subnet
	Bridge       string       // "none" makes no default bridge
	MTU          int
	DNS          []netip.Addr
	DNSOptions   []string
	DNSSearch    []string

	TLS, TLSVerify         bool
	TLSCA, TLSCert, TLSKey string
	Containerd             string // socket of an existing containerd
	ContainerdNamespace    string
	CgroupParent           string
	LogDriver              string // of containers that name none
	LogOpts                map[string]string
	Ulimits                map[string]*units.Ulimit
	Init                   bool
	DefaultAdvertiseAddr   string
	Experimental           bool
	HTTPProxy, HTTPSProxy  string
	NoProxy                string
}

// Default returns the configuration of a daemon that is told nothing.
func Default() Config {
	return Config{
		Group: "docker", DataRoot: DefaultDataRoot, ExecRoot: DefaultExecRoot, ConfigFile: DefaultConfigFile,
		LogLevel: "info", LogFormat: "text", LogDriver: "json-file", ContainerdNamespace: "skep",
	}
}

// Validate checks what no single setting can tell and fills in what follows
// from others.
func (c *Config) Validate() error {
	if !filepath.IsAbs(c.DataRoot) || !filepath.IsAbs(c.ExecRoot) {
		return cluster.Invalidf("--data-root and --exec-root must be absolute paths")
	}
	c.DataRoot, c.ExecRoot = filepath.Clean(c.DataRoot), filepath.Clean(c.ExecRoot)
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix://" + filepath.Join(c.ExecRoot, "skep.sock")}
	}
	c.PidFile = cmp.Or(c.PidFile, filepath.Join(c.ExecRoot, "skep.pid"))
	if _, err := c.level(); err != nil {
		return err
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return cluster.Invalidf("invalid log format: %s (text or json)", c.LogFormat)
	}
	if c.TLSVerify {
		c.TLS = true
	}
	if c.TLS && (c.TLSCert == "" || c.TLSKey == "") {
		return cluster.Invalidf("TLS needs --tlscert and --tlskey")
	}
	if c.TLSVerify && c.TLSCA == "" {
		return cluster.Invalidf("--tlsverify needs --tlscacert, to check clients against")
	}
	for _, l := range c.Labels {
		if key, _, ok := strings.Cut(l, "="); !ok || key == "" {
			return cluster.Invalidf("bad attribute format: %s", l)
		}
	}
	switch c.LogDriver {
	case "json-file", "local", "none":
	default:
		return cluster.Invalidf("log driver %q is not built yet (json-file, local and none are)", c.LogDriver)
	}
	if c.MTU < 0 {
		return cluster.Invalidf("invalid default MTU value: %d", c.MTU)
	}
	return nil
}

// level is the least severe message to log.
func (c *Config) level() (slog.Level, error) {
	if c.Debug {
		return slog.LevelDebug, nil
	}
	switch c.LogLevel {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error", "fatal", "panic":
		return slog.LevelError, nil
	}
	return 0, cluster.Invalidf("invalid logging level: %s", c.LogLevel)
}

// parsePool reads an address pool as dockerd's flag has it: base=…,size=….
func parsePool(raw string) (AddressPool, error) {
	fields, err := csv.NewReader(strings.NewReader(raw)).Read()
	if err != nil {
		return AddressPool{}, fmt.Errorf("address pool %q: %w", raw, err)
	}
	var p AddressPool
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "base":
			p.Base, err = netip.ParsePrefix(value)
		case "size":
			p.Size, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unexpected key '%s' in '%s'", key, f)
		}
		if err != nil {
			return p, fmt.Errorf("address pool %q: %w", raw, err)
		}
	}
	if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
		return p, fmt.Errorf("address pool %q: size must lie between the base's own prefix length and its address length", raw)
	}
	p.Base = p.Base.Masked()
	return p, nil
}
