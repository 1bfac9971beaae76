package control

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// maxConfig is one byte more than a config may hold.
const maxConfig = 1000 << 10

func (a *API) configMethods() {
	method(a, "configs", a.configs)
	method(a, "config", a.config)
	method(a, "config.create", a.createConfig)
	method(a, "config.update", a.updateConfig)
	method(a, "config.remove", a.removeConfig)
}

// Configs lists configs.
func (a *API) Configs(ctx context.Context, f Filters) ([]swarm.Config, error) {
	return read(ctx, a, "configs", listReq{f}, a.configs)
}

func (a *API) configs(_ context.Context, r listReq) ([]swarm.Config, error) {
	if err := checkPayloadFilters(r.Filters); err != nil {
		return nil, err
	}
	var out []swarm.Config
	for _, s := range a.Store.View().Configs() {
		if payloadPasses(r.Filters, s.ID, &s.Spec.Annotations) {
			out = append(out, configAPI(s))
		}
	}
	return out, nil
}

// Config returns a config.
func (a *API) Config(ctx context.Context, ref string) (swarm.Config, error) {
	return read(ctx, a, "config", refReq{ref}, a.config)
}

func (a *API) config(_ context.Context, r refReq) (swarm.Config, error) {
	s, err := findConfig(a.Store.View(), r.Ref)
	if err != nil {
		return swarm.Config{}, err
	}
	return configAPI(s), nil
}

// CreateConfig makes a config and returns its id.
func (a *API) CreateConfig(ctx context.Context, spec swarm.ConfigSpec) (string, error) {
	return write(ctx, a, "config.create", spec, a.createConfig)
}

func (a *API) createConfig(ctx context.Context, spec swarm.ConfigSpec) (string, error) {
	if err := checkPayload("config", maxConfig, asSecret(&spec)); err != nil {
		return "", err
	}
	s := &cluster.Config{ID: cluster.NewID(), Spec: &spec}
	return s.ID, a.propose(ctx, store.CreateConfig(s))
}

// UpdateConfig writes a config's labels: nothing else of it can change.
func (a *API) UpdateConfig(ctx context.Context, ref string, version uint64, spec swarm.ConfigSpec) error {
	_, err := write(ctx, a, "config.update", updateReq[swarm.ConfigSpec]{ref, version, spec}, a.updateConfig)
	return err
}

func (a *API) updateConfig(ctx context.Context, r updateReq[swarm.ConfigSpec]) (none, error) {
	old, err := findConfig(a.Store.View(), r.Ref)
	if err != nil {
		return none{}, err
	}
	if err := checkRelabelling(asSecret(old.Spec), asSecret(&r.Spec)); err != nil {
		return none{}, err
	}
	if r.Version != old.Version {
		return none{}, outOfSequence()
	}
	n, spec := *old, *old.Spec
	spec.Labels = r.Spec.Labels
	n.Spec = &spec
	return none{}, a.propose(ctx, store.UpdateConfig(&n))
}

// RemoveConfig removes a config that no service refers to.
func (a *API) RemoveConfig(ctx context.Context, ref string) error {
	_, err := write(ctx, a, "config.remove", refReq{ref}, a.removeConfig)
	return err
}

func (a *API) removeConfig(ctx context.Context, r refReq) (none, error) {
	v := a.Store.View()
	s, err := findConfig(v, r.Ref)
	if err != nil {
		return none{}, err
	}
	users := usersOf(v, func(c *swarm.ContainerSpec) bool {
		return slices.ContainsFunc(c.Configs, func(r *swarm.ConfigReference) bool { return r.ConfigID == s.ID })
	})
	if err := inUse("config", s.Spec.Name, users); err != nil {
		return none{}, err
	}
	c := store.DeleteConfig(s)
	c.Expect = 0
	return none{}, a.propose(ctx, c)
}
