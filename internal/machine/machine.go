// Package machine makes hosts on one Linux host, for trying, teaching and
// testing: each has its own network, mount, process, hostname and IPC
// namespaces, its own /run and /etc, a data root, cgroups, and a skep daemon
// inside. It owns the folder of a fleet and everything on the host that belongs
// to it. It never looks inside a daemon, which it knows only as a program that it
// starts. cmd/skep, tests and benches call it, and the demo through cmd/skep.
package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// DefaultRoot is where a fleet lives unless $SKEP_MACHINES says otherwise.
const DefaultRoot = "/var/lib/skep-machines"

// The states of a machine.
const (
	Running = "running"
	Stopped = "stopped"
)

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// Fleet is the machines of one root folder. They share a bridge and a subnet;
// fleets of different roots do not meet.
type Fleet struct {
	Root   string `json:"-"`
	Bridge string
	Subnet netip.Prefix
}

// Machine is one host. It is stored as machine.json in its folder.
type Machine struct {
	Name    string
	Addr    netip.Addr
	Link    string // the host's end of its network cable
	Daemon  string `json:",omitempty"` // in place of `skep daemon`
	Args    []string
	Created time.Time
	// Pid is the machine's first process while it runs, Started its start time
	// in clock ticks, so that a reused pid is not taken for it.
	Pid     int
	Started string
	// Side is the side of a network partition it is on; "" is the main one.
	Side string

	dir string
}

// OpenFleet reads the fleet of a root folder, or prepares a new one in memory.
func OpenFleet(root string) (*Fleet, error) {
	f := &Fleet{Root: root}
	b, err := os.ReadFile(filepath.Join(root, "fleet.json"))
	if errors.Is(err, os.ErrNotExist) {
		h := fnv.New32a()
		h.Write([]byte(root))
		f.Bridge = fmt.Sprintf("skm%06x", h.Sum32()&0xffffff)
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%s/fleet.json: %w", root, err)
	}
	return f, nil
}

// lock makes changes to the fleet one at a time, also between processes.
func (f *Fleet) lock() (unlock func(), err error) {
	if err := os.MkdirAll(f.Root, 0o711); err != nil {
		return nil, err
	}
	fd, err := os.OpenFile(filepath.Join(f.Root, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(fd.Fd()), syscall.LOCK_EX); err != nil {
		fd.Close()
		return nil, err
	}
	// Another process may have made or removed the fleet while this one waited.
	if fresh, err := OpenFleet(f.Root); err == nil {
		*f = *fresh
	}
	return func() { fd.Close() }, nil
}

func (f *Fleet) dir(name string) string { return filepath.Join(f.Root, name) }

// Get returns a machine by name.
func (f *Fleet) Get(name string) (*Machine, error) {
	if !nameRule.MatchString(name) {
		return nil, cluster.Invalidf("machine name %q: letters, digits and inner dashes only", name)
	}
	b, err := os.ReadFile(filepath.Join(f.dir(name), "machine.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, cluster.NotFoundf("no such machine: %s", name)
	}
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: f.dir(name)}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return m, nil
}

// List returns the fleet's machines by name.
func (f *Fleet) List() ([]*Machine, error) {
	entries, err := os.ReadDir(f.Root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Machine
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(f.Root, e.Name(), "machine.json")); err != nil {
			continue
		}
		m, err := f.Get(e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func (m *Machine) save() error { return writeJSON(filepath.Join(m.dir, "machine.json"), m) }

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// State returns Running or Stopped, by a look at the machine's first process.
func (m *Machine) State() string {
	if m.Pid != 0 && startTime(m.Pid) == m.Started {
		return Running
	}
	return Stopped
}

// Socket is the path, on the host, of the machine's Engine API.
func (m *Machine) Socket() string { return filepath.Join(m.dir, "skep.sock") }

// LogFile is the path of its daemon's log.
func (m *Machine) LogFile() string { return filepath.Join(m.dir, "daemon.log") }

// DataRoot is the daemon's data root; it survives stop and kill.
func (m *Machine) DataRoot() string { return filepath.Join(m.dir, "data") }

// startTime returns when a process started, in clock ticks since boot; "" when
// it does not exist or is only waiting to be reaped.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in brackets, may hold anything: count from the last bracket.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// names checks that every name is a machine's and returns the machines.
func (f *Fleet) names(names []string, all bool) ([]*Machine, error) {
	if all {
		return f.List()
	}
	var ms []*Machine
	for _, n := range names {
		m, err := f.Get(n)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(ms, func(o *Machine) bool { return o.Name == m.Name }) {
			ms = append(ms, m)
		}
	}
	return ms, nil
}
