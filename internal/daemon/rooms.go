package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/volume"
)

// rooms are the parts of the daemon that run containers on this host.
type rooms struct {
	engine   *engine.Engine
	images   *image.Store
	volumes  *volume.Store
	networks *network.Manager
	link     *link
	founded  chan struct{} // swarm tells swarmevents that a swarm was begun
	closers  []func() error
}

// close closes the rooms in the reverse of the order they were opened in.
func (r *rooms) close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	return errors.Join(errs...)
}

// open opens the rooms of one host, each with those it needs. The image and
// volume stores ask the engine who uses a thing, and it is made from them: what
// they are told about it is bound late.
func open(ctx context.Context, c *Config, log *slog.Logger) (_ *rooms, err error) {
	r := &rooms{link: &link{}, founded: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	users := &users{}
	conf := engine.Config{
		DataRoot: c.DataRoot, ExecRoot: c.ExecRoot, CgroupParent: c.CgroupParent,
		Namespace: c.ContainerdNamespace, Containerd: c.Containerd,
		LogDriver: c.LogDriver, LogOpts: c.LogOpts, Ulimits: ulimits(c.Ulimits), Init: c.Init, Log: log.With("room", "engine"),
	}
	if conf.Layers, err = engine.OpenLayers(ctx, conf); err != nil {
		return r, err
	}
	r.closers = append(r.closers, conf.Layers.Close)
	r.images = image.New(image.Config{
		Client: conf.Layers.Client, Namespace: conf.Layers.Namespace, Snapshotter: conf.Layers.Snapshotter,
		Insecure: c.Insecure, Mirrors: c.Mirrors, Publish: users.publish, InUse: users.ofImage, Log: log.With("room", "image"),
	})
	r.volumes, err = volume.New(volume.Config{
		Root: filepath.Join(c.DataRoot, "volumes"), Holders: users.ofVolume, Publish: users.publish, Log: log.With("room", "volume"),
	})
	if err != nil {
		return r, err
	}
	r.networks, err = network.New(network.Config{
		Dir: filepath.Join(c.DataRoot, "network"), ExecDir: filepath.Join(c.ExecRoot, "network"),
		Bridge: c.Bridge, BIP: c.BridgeIP, AddressPools: pools(c.AddressPools), MTU: c.MTU,
		ForwardDNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions,
		DataAddr: r.link.DataAddr, Swarm: r.link, Publish: users.publish, Log: log.With("room", "network"),
	})
	if err != nil {
		return r, err
	}
	conf.Images, conf.Volumes, conf.Networks = r.images, r.volumes, r.networks
	if r.engine, err = engine.New(ctx, conf); err != nil {
		return r, err
	}
	r.closers = append(r.closers, r.engine.Close)
	users.engine.Store(r.engine)
	return r, nil
}

func ulimits(by map[string]*units.Ulimit) []*units.Ulimit {
	var all []*units.Ulimit
	for _, l := range by {
		all = append(all, l)
	}
	return all
}

func pools(from []AddressPool) []network.Pool {
	var to []network.Pool
	for _, p := range from {
		to = append(to, network.Pool{Base: p.Base, Size: p.Size})
	}
	return to
}

// users answers which containers use a thing, once there is an engine.
type users struct {
	engine atomic.Pointer[engine.Engine]
}

func (u *users) publish(typ events.Type, action events.Action, actor events.Actor) {
	if e := u.engine.Load(); e != nil {
		e.Publish(typ, action, actor)
	}
}

// all lists the containers, running or not.
func (u *users) all() ([]container.Summary, error) {
	e := u.engine.Load()
	if e == nil {
		return nil, errors.New("the engine is not open yet")
	}
	return e.List(context.Background(), engine.ListOptions{All: true})
}

// unknown is the user of everything while users cannot be listed: what may be
// in use is not removed.
const unknown = "unknown"

// ofImage returns a container made from the image, a running one if there is one.
func (u *users) ofImage(id string) (user string, running bool) {
	all, err := u.all()
	if err != nil {
		return unknown, true
	}
	for _, c := range all {
		if c.ImageID != id {
			continue
		}
		switch c.State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			return c.ID, true
		}
		user = c.ID
	}
	return user, false
}

// ofVolume returns the containers that refer to a volume.
func (u *users) ofVolume(name string) []string {
	all, err := u.all()
	if err != nil {
		return []string{unknown}
	}
	var ids []string
	for _, c := range all {
		for _, m := range c.Mounts {
			if m.Type == mount.TypeVolume && m.Name == name {
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}
