package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/machine"
)

// side is one of the two engines, in hosts of its own fleet.
type side struct {
	name   string
	root   string
	skep   string // the binary that makes hosts
	cli    string // what a user of this side types
	daemon string // in place of skep's daemon
	fleet  *machine.Fleet
	hosts  []*host
}

// host is one machine of a side.
type host struct {
	name, addr, cgroup string
	m                  *machine.Machine
	api                *http.Client
}

func (s *side) clear() error {
	f, err := machine.OpenFleet(s.root)
	if err != nil {
		return err
	}
	s.hosts = nil
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return f.RemoveAll(ctx)
}

// create makes n hosts named h1, h2, ….
func (s *side) create(ctx context.Context, n int) error {
	args := []string{"machine", "create"}
	if s.daemon != "" {
		args = append(args, "--daemon", s.daemon)
	}
	for i := range n {
		args = append(args, fmt.Sprint("h", i+1))
	}
	if _, err := s.run(ctx, s.skep, args...); err != nil {
		return err
	}
	var err error
	if s.fleet, err = machine.OpenFleet(s.root); err != nil {
		return err
	}
	for i := range n {
		h := &host{name: fmt.Sprint("h", i+1)}
		if err := s.refresh(h); err != nil {
			return err
		}
		s.hosts = append(s.hosts, h)
	}
	return nil
}

// refresh reads what the fleet knows of a host, after it was switched on.
func (s *side) refresh(h *host) error {
	m, err := s.fleet.Get(h.name)
	if err != nil {
		return err
	}
	h.m, h.addr, h.cgroup = m, m.Addr.String(), filepath.Join("/", s.fleet.Bridge, m.Name)
	h.api = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 16,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", m.Socket())
		}}}
	return nil
}

// run runs a program on the real host and returns what it printed.
func (s *side) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "SKEP_MACHINES="+s.root, "DOCKER_CONFIG="+filepath.Join(s.root, "config"), "DOCKER_CLI_HINTS=false")
	return output(cmd, cmd.Run)
}

func output(cmd *exec.Cmd, run func() error) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out.String(), errOut.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// inside runs a program inside a host, as over ssh.
func (h *host) inside(args ...string) (string, error) {
	cmd := h.m.Command(args...)
	return output(cmd, func() error { return h.m.Exec(cmd) })
}

// type_ runs a command line of the side's own client at a host.
func (s *side) type_(ctx context.Context, h *host, args ...string) (string, error) {
	return s.run(ctx, s.cli, append([]string{"-H", "unix://" + h.m.Socket()}, args...)...)
}

// cut cuts a host's power.
func (s *side) cut(ctx context.Context, h *host) error { return s.fleet.Kill(ctx, h.m) }

// start switches a host on again.
func (s *side) start(ctx context.Context, h *host) error {
	if _, err := s.run(ctx, s.skep, "machine", "start", h.name); err != nil {
		return err
	}
	return s.refresh(h)
}

// swarm makes a swarm of all the side's hosts.
func (s *side) swarm(ctx context.Context, managers int) error {
	first := s.hosts[0]
	if err := first.call(ctx, "POST", "/swarm/init", map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": first.addr}, nil); err != nil {
		return err
	}
	var sw swarm.Swarm
	if err := first.call(ctx, "GET", "/swarm", nil, &sw); err != nil {
		return err
	}
	for i, h := range s.hosts[1:] {
		token := sw.JoinTokens.Worker
		if i+1 < managers {
			token = sw.JoinTokens.Manager
		}
		join := map[string]any{"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": h.addr, "RemoteAddrs": []string{first.addr + ":2377"}, "JoinToken": token}
		if err := h.call(ctx, "POST", "/swarm/join", join, nil); err != nil {
			return err
		}
	}
	return s.ready(ctx, first)
}

// ready waits until all nodes are, as host h sees them.
func (s *side) ready(ctx context.Context, h *host) error {
	return await(ctx, "all nodes ready", 20*time.Millisecond, func() (bool, error) {
		var nodes []swarm.Node
		if err := h.call(ctx, "GET", "/nodes", nil, &nodes); err != nil {
			return false, unlessBusy(err)
		}
		up := 0
		for _, n := range nodes {
			if n.Status.State == swarm.NodeStateReady && (n.ManagerStatus == nil || n.ManagerStatus.Reachability == swarm.ReachabilityReachable) {
				up++
			}
		}
		return up == len(s.hosts), nil
	})
}

// leader returns the host that leads, and the others.
func (s *side) leader(ctx context.Context) (lead *host, others []*host, err error) {
	err = await(ctx, "a leader", 50*time.Millisecond, func() (bool, error) {
		lead, others = nil, nil
		for _, h := range s.hosts {
			id, err := h.nodeID(ctx)
			if err != nil {
				return false, err
			}
			var n swarm.Node
			if err := h.call(ctx, "GET", "/nodes/"+id, nil, &n); err != nil {
				return false, unlessBusy(err)
			}
			if n.ManagerStatus != nil && n.ManagerStatus.Leader {
				lead = h
			} else {
				others = append(others, h)
			}
		}
		return lead != nil && len(others) == len(s.hosts)-1, nil
	})
	return lead, others, err
}

func (h *host) nodeID(ctx context.Context) (string, error) {
	var info struct{ Swarm swarm.Info }
	err := h.call(ctx, "GET", "/info", nil, &info)
	if err == nil && info.Swarm.NodeID == "" {
		err = errors.New(h.name + " is in no swarm")
	}
	return info.Swarm.NodeID, err
}
