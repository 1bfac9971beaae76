package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// name creates a service whose task runs on the first host and asks for its name
// in a container on the second until there is an answer.
func name(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 2, 1); err != nil {
		return err
	}
	clients := map[*side]string{}
	for _, s := range b.sides() {
		if err := s.hosts[0].network(ctx, "back"); err != nil {
			return err
		}
		if err := s.hosts[1].refuseNames(); err != nil {
			return err
		}
		id, err := s.hosts[1].runContainer(ctx, "back", "sleep", "3600")
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		clients[s] = id
	}
	return b.each(ctx, func(run int, s *side) error {
		name := fmt.Sprint("web", run)
		type answer struct {
			out string
			err error
		}
		answers := make(chan answer, 1)
		go func() {
			out, err := s.type_(ctx, s.hosts[1], "exec", clients[s], "bench", "resolve", name)
			answers <- answer{out, err}
		}()
		if err := pause(ctx, 700*time.Millisecond); err != nil { // it asks by now
			return err
		}
		spec := service(name, 1)
		onOverlay(&spec)
		spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname==" + s.hosts[0].name}}
		began := time.Now()
		id, err := s.hosts[0].create(ctx, spec)
		if err != nil {
			return err
		}
		created := time.Now()
		a := <-answers
		if a.err != nil {
			return a.err
		}
		ns, err := strconv.ParseInt(a.out, 10, 64)
		if err != nil {
			return err
		}
		b.record(s, "name-after-create-began", "s", time.Unix(0, ns).Sub(began).Seconds())
		b.record(s, "name-after-create", "s", time.Unix(0, ns).Sub(created).Seconds())
		return s.hosts[0].call(ctx, "DELETE", "/services/"+id, nil, nil)
	})
}

// refuseNames has a host ask a server of names that is not there: until the name
// is known each question goes outside, and must not wait for an answer there.
func (h *host) refuseNames() error {
	gateway := h.m.Addr.As4()
	gateway[3] = 1
	return os.WriteFile(fmt.Sprintf("/proc/%d/root/etc/resolv.conf", h.m.Pid), []byte("nameserver "+netip.AddrFrom4(gateway).String()+"\n"), 0o644)
}
