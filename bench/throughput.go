package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

const streamSeconds = "1"

// path is one way from the first host to a sink on the second.
type path struct {
	name   string
	s      *side
	stream func(ctx context.Context, streams string) (string, error)
}

// throughput sends TCP from the first host to the second: as hosts, through a
// VXLAN laid by hand, and from container to container.
func throughput(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 2, 1); err != nil {
		return err
	}
	tool := filepath.Join(b.work, "inside")
	first, second := b.ours.hosts[0], b.ours.hosts[1]
	host, err := second.background(tool, "sink")
	if err != nil {
		return err
	}
	defer host()
	if err := b.plainVXLAN(first, second); err != nil {
		return err
	}
	vxlan, err := second.background("ip", "netns", "exec", "plain", tool, "sink")
	if err != nil {
		return err
	}
	defer vxlan()
	paths := []path{
		{"hosts", b.ours, func(_ context.Context, n string) (string, error) {
			return first.inside(tool, "stream", second.addr+":5000", n, streamSeconds)
		}},
		{"plain-vxlan", b.ours, func(_ context.Context, n string) (string, error) {
			return first.inside("ip", "netns", "exec", "plain", tool, "stream", "10.200.0.2:5000", n, streamSeconds)
		}},
	}
	for _, s := range b.sides() {
		more, err := s.overlayPaths(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if s == b.peer {
			more = more[:1] // its virtual addresses need IPVS, which this kernel may lack
		}
		paths = append(paths, more...)
	}
	for range b.m.runs {
		for _, streams := range []string{"1", "4"} {
			if err := b.quiet(ctx); err != nil {
				return err
			}
			got := map[string]float64{}
			for _, p := range paths {
				out, err := p.stream(ctx, streams)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", p.s.name, p.name, err)
				}
				v, err := strconv.ParseFloat(out, 64)
				if err != nil {
					return err
				}
				b.record(p.s, "throughput-"+p.name+"-"+streams, "Gbit/s", v)
				if p.s == b.ours {
					got[p.name] = v
				}
			}
			// One after the other, so that what else the machine does hits both alike.
			b.record(b.ours, "overlay-to-plain-vxlan-"+streams, "of it", got["overlay"]/got["plain-vxlan"])
			b.record(b.ours, "virtual-address-to-direct-"+streams, "of it", got["virtual-address"]/got["overlay"])
		}
	}
	return nil
}

// overlayPaths starts a sink as a service on the second host and a client on the
// first, and returns the direct path and that through the service's address.
func (s *side) overlayPaths(ctx context.Context) ([]path, error) {
	first := s.hosts[0]
	if err := first.network(ctx, "back"); err != nil {
		return nil, err
	}
	spec := service("sink", 1)
	onOverlay(&spec)
	spec.TaskTemplate.ContainerSpec.Args = []string{"bench", "sink"}
	spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname==" + s.hosts[1].name}}
	id, err := first.create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := first.running(ctx, id, 1); err != nil {
		return nil, err
	}
	client, err := first.runContainer(ctx, "back", "sleep", "3600")
	if err != nil {
		return nil, err
	}
	ts, err := first.tasks(ctx, id)
	if err != nil {
		return nil, err
	}
	var svc swarm.Service
	if err := first.call(ctx, "GET", "/services/"+id, nil, &svc); err != nil {
		return nil, err
	}
	if len(ts) != 1 || len(ts[0].NetworksAttachments) != 1 || len(ts[0].NetworksAttachments[0].Addresses) != 1 || len(svc.Endpoint.VirtualIPs) != 1 {
		return nil, errors.New("the sink has no address")
	}
	to := func(name string, addr netip.Prefix) path {
		return path{name, s, func(ctx context.Context, n string) (string, error) {
			return s.type_(ctx, first, "exec", client, "bench", "stream", addr.Addr().String()+":5000", n, streamSeconds)
		}}
	}
	return []path{to("overlay", ts[0].NetworksAttachments[0].Addresses[0]), to("virtual-address", svc.Endpoint.VirtualIPs[0].Addr)}, nil
}

// plainVXLAN lays what an overlay lays between two hosts, and nothing more:
// namespace, cable, bridge, VXLAN.
func (b *bench) plainVXLAN(hosts ...*host) error {
	for i, h := range hosts {
		other := hosts[1-i]
		for _, line := range []string{
			"netns add plain",
			"link add plainbr mtu 1450 type bridge",
			"link add plainvx mtu 1450 type vxlan id 4242 dstport 4799 local " + h.addr + " remote " + other.addr,
			"link set plainvx master plainbr up",
			"link add plainv mtu 1450 type veth peer name eth0 mtu 1450 netns plain",
			"link set plainv master plainbr up",
			"link set plainbr up",
			"-n plain link set lo up",
			"-n plain addr add 10.200.0." + strconv.Itoa(i+1) + "/24 dev eth0",
			"-n plain link set eth0 up",
		} {
			if _, err := h.inside(append([]string{"ip"}, strings.Fields(line)...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// background starts a program inside a host; the returned function ends it.
func (h *host) background(args ...string) (end func(), err error) {
	cmd := h.m.Command(args...)
	ended := make(chan error, 1)
	go func() { ended <- h.m.Exec(cmd) }()
	select {
	case err := <-ended:
		return nil, fmt.Errorf("%s: ended at once: %w", strings.Join(args, " "), errors.Join(err, exec.ErrNotFound))
	case <-time.After(300 * time.Millisecond):
	}
	return func() {
		cmd.Process.Kill()
		<-ended
	}, nil
}
