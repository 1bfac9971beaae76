package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/network"
)

// join gives a container that is about to start its network namespace and the
// files that go with it.
func (e *Engine) join(ctx context.Context, rec *record) (netns string, err error) {
	hc := rec.HostConfig
	switch {
	case hc.NetworkMode.IsContainer():
		pid, err := e.pidOf(hc.NetworkMode.ConnectedContainer())
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("/proc/%d/ns/net", pid), nil
	case hc.NetworkMode.IsHost():
		return "", e.writeNetFiles(*rec, true)
	case hc.NetworkMode.IsNone() && len(rec.Endpoints) == 1:
		return "", e.writeNetFiles(*rec, false)
	}
	req := network.SandboxRequest{
		ContainerID: rec.ID, ContainerName: rec.Name, Plain: !rec.Swarm, Hostname: rec.Config.Hostname, Dir: e.dir(rec.ID),
		Ports: publish(*rec), DNS: hc.DNS, DNSSearch: hc.DNSSearch, DNSOptions: hc.DNSOptions, ExtraHosts: hc.ExtraHosts,
	}
	for i, ep := range rec.Endpoints {
		if ep.Network == apinetwork.NetworkNone {
			continue
		}
		r := endpointRequest(ep)
		if i == 0 {
			r.Links = append(r.Links, hc.Links...)
		}
		req.Endpoints = append(req.Endpoints, r)
	}
	sb, err := e.cfg.Networks.Join(ctx, req)
	if err != nil {
		return "", err
	}
	rec.Sandbox = sandbox{NetNS: sb.NetNS, Ports: sb.Ports}
	rec.Endpoints = slices.Clone(rec.Endpoints)
	for i := range rec.Endpoints {
		rec.Endpoints[i].Settings = rec.Endpoints[i].Settings.Copy()
	}
	for _, got := range sb.Endpoints {
		fillEndpoint(rec, got)
		e.emitNetwork(*rec, events.ActionConnect, got.NetworkID, got.NetworkName)
	}
	return sb.NetNS, nil
}

// leave undoes join.
func (e *Engine) leave(ctx context.Context, rec *record) error {
	hc := rec.HostConfig
	rec.Sandbox = sandbox{}
	rec.Endpoints = slices.Clone(rec.Endpoints)
	for i := range rec.Endpoints {
		s := rec.Endpoints[i].Settings.Copy()
		if s.EndpointID != "" {
			e.emitNetwork(*rec, events.ActionDisconnect, s.NetworkID, rec.Endpoints[i].Network)
		}
		rec.Endpoints[i].Settings = &apinetwork.EndpointSettings{
			IPAMConfig: s.IPAMConfig, Links: s.Links, Aliases: s.Aliases, DriverOpts: s.DriverOpts,
			GwPriority: s.GwPriority, NetworkID: s.NetworkID, MacAddress: rec.Endpoints[i].MAC,
		}
	}
	if e.cfg.Networks == nil || hc.NetworkMode.IsContainer() || hc.NetworkMode.IsHost() {
		return nil
	}
	return e.cfg.Networks.Leave(ctx, rec.ID)
}

func endpointRequest(ep endpoint) network.EndpointRequest {
	s := ep.Settings
	r := network.EndpointRequest{
		Network: ep.Network, Aliases: s.Aliases, Links: slices.Clone(s.Links), Opts: s.DriverOpts, GwPriority: s.GwPriority,
	}
	if len(ep.MAC) > 0 {
		r.MAC = ep.MAC.String()
	}
	if s.IPAMConfig != nil {
		r.Addr = s.IPAMConfig.IPv4Address
	}
	return r
}

// fillEndpoint puts what the network manager made into the record.
func fillEndpoint(rec *record, got network.Endpoint) {
	i := slices.IndexFunc(rec.Endpoints, func(ep endpoint) bool {
		return ep.Network == got.NetworkName || ep.Network == got.NetworkID ||
			len(ep.Network) >= 3 && strings.HasPrefix(got.NetworkID, ep.Network)
	})
	if i < 0 {
		return
	}
	s := rec.Endpoints[i].Settings
	rec.Endpoints[i].Network = got.NetworkName
	s.NetworkID, s.EndpointID = got.NetworkID, got.EndpointID
	s.Gateway, s.IPAddress, s.IPPrefixLen = got.Gateway, got.Addr.Addr(), got.Addr.Bits()
	s.DNSNames = got.DNSNames
	var mac apinetwork.HardwareAddr
	if err := mac.UnmarshalText([]byte(got.MAC)); err == nil {
		s.MacAddress = mac
	}
}

// publish returns the port bindings asked for; -P adds each exposed port.
func publish(rec record) apinetwork.PortMap {
	out := apinetwork.PortMap{}
	for p, b := range rec.HostConfig.PortBindings {
		out[p] = b
	}
	if rec.HostConfig.PublishAllPorts {
		for p := range rec.Config.ExposedPorts {
			if _, ok := out[p]; !ok {
				out[p] = []apinetwork.PortBinding{{}}
			}
		}
	}
	return out
}

// writeHostname writes the file that becomes /etc/hostname.
func (e *Engine) writeHostname(rec record) error {
	if rec.HostConfig.NetworkMode.IsContainer() || rec.Config.Hostname == "" {
		return nil
	}
	return os.WriteFile(e.file(rec.ID, "hostname"), []byte(rec.Config.Hostname+"\n"), 0o644)
}

// writeNetFiles writes hosts and resolv.conf for a container that no network
// manager does it for.
func (e *Engine) writeNetFiles(rec record, host bool) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	if host {
		if data, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = string(data)
		}
	}
	for _, h := range rec.HostConfig.ExtraHosts {
		if name, addr, ok := strings.Cut(h, ":"); ok {
			hosts += addr + "\t" + name + "\n"
		}
	}
	resolv := ""
	if data, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		resolv = string(data)
	}
	if hc := rec.HostConfig; len(hc.DNS) > 0 || len(hc.DNSSearch) > 0 || len(hc.DNSOptions) > 0 {
		resolv = ""
		for _, a := range hc.DNS {
			resolv += "nameserver " + a.String() + "\n"
		}
		if len(hc.DNSSearch) > 0 {
			resolv += "search " + strings.Join(hc.DNSSearch, " ") + "\n"
		}
		if len(hc.DNSOptions) > 0 {
			resolv += "options " + strings.Join(hc.DNSOptions, " ") + "\n"
		}
	}
	return errors.Join(
		os.WriteFile(e.file(rec.ID, "hosts"), []byte(hosts), 0o644),
		os.WriteFile(e.file(rec.ID, "resolv.conf"), []byte(resolv), 0o644),
	)
}

// ConnectNetwork puts a container into another network, at once if it runs, else
// when it starts.
func (e *Engine) ConnectNetwork(ctx context.Context, ref, netRef string, settings *apinetwork.EndpointSettings) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	ctx = e.whole(ctx)
	if settings == nil {
		settings = &apinetwork.EndpointSettings{}
	}
	rec := c.view()
	if mode := rec.HostConfig.NetworkMode; mode.IsHost() || mode.IsContainer() {
		return cluster.Deniedf("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if slices.ContainsFunc(rec.Endpoints, func(ep endpoint) bool { return ep.Network == netRef }) {
		return cluster.Deniedf("endpoint with name %s already exists in network %s", rec.Name, netRef)
	}
	if e.cfg.Networks == nil {
		return cluster.Unavailablef("network %s: this engine has no networks", netRef)
	}
	ep := endpoint{Network: netRef, Settings: settings.Copy(), MAC: settings.MacAddress}
	rec.Endpoints = append(slices.Clone(rec.Endpoints), ep)
	if rec.State.running() {
		got, err := e.cfg.Networks.Connect(ctx, rec.ID, endpointRequest(ep))
		if err != nil {
			return err
		}
		fillEndpoint(&rec, *got)
		e.emitNetwork(rec, events.ActionConnect, got.NetworkID, got.NetworkName)
	}
	return e.update(c, func(r *record) { r.Endpoints = rec.Endpoints })
}

// DisconnectNetwork takes a container out of a network.
func (e *Engine) DisconnectNetwork(ctx context.Context, ref, netRef string, force bool) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec := c.view()
	i := slices.IndexFunc(rec.Endpoints, func(ep endpoint) bool {
		return ep.Network == netRef || ep.Settings.NetworkID != "" && strings.HasPrefix(ep.Settings.NetworkID, netRef)
	})
	if i < 0 {
		return cluster.Deniedf("container %s is not connected to network %s", rec.ID, netRef)
	}
	ep := rec.Endpoints[i]
	if rec.State.running() && e.cfg.Networks != nil {
		if err := e.cfg.Networks.Disconnect(e.whole(ctx), rec.ID, ep.Network, force); err != nil {
			return err
		}
		e.emitNetwork(rec, events.ActionDisconnect, ep.Settings.NetworkID, ep.Network)
	}
	rest := slices.Delete(slices.Clone(rec.Endpoints), i, i+1)
	return e.update(c, func(r *record) { r.Endpoints = rest })
}
