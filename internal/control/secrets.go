package control

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// maxSecret is one byte more than a secret may hold.
const maxSecret = 500 << 10

func (a *API) secretMethods() {
	method(a, "secrets", a.secrets)
	method(a, "secret", a.secret)
	method(a, "secret.create", a.createSecret)
	method(a, "secret.update", a.updateSecret)
	method(a, "secret.remove", a.removeSecret)
}

// Secrets lists secrets, without what is in them.
func (a *API) Secrets(ctx context.Context, f Filters) ([]swarm.Secret, error) {
	return read(ctx, a, "secrets", listReq{f}, a.secrets)
}

func (a *API) secrets(_ context.Context, r listReq) ([]swarm.Secret, error) {
	if err := checkPayloadFilters(r.Filters); err != nil {
		return nil, err
	}
	var out []swarm.Secret
	for _, s := range a.Store.View().Secrets() {
		if payloadPasses(r.Filters, s.ID, &s.Spec.Annotations) {
			out = append(out, secretAPI(s))
		}
	}
	return out, nil
}

// Secret returns a secret, without what is in it.
func (a *API) Secret(ctx context.Context, ref string) (swarm.Secret, error) {
	return read(ctx, a, "secret", refReq{ref}, a.secret)
}

func (a *API) secret(_ context.Context, r refReq) (swarm.Secret, error) {
	s, err := findSecret(a.Store.View(), r.Ref)
	if err != nil {
		return swarm.Secret{}, err
	}
	return secretAPI(s), nil
}

// CreateSecret makes a secret and returns its id.
func (a *API) CreateSecret(ctx context.Context, spec swarm.SecretSpec) (string, error) {
	return write(ctx, a, "secret.create", spec, a.createSecret)
}

func (a *API) createSecret(ctx context.Context, spec swarm.SecretSpec) (string, error) {
	if err := checkPayload("secret", maxSecret, &spec); err != nil {
		return "", err
	}
	s := &cluster.Secret{ID: cluster.NewID(), Spec: &spec}
	return s.ID, a.propose(ctx, store.CreateSecret(s))
}

// UpdateSecret writes a secret's labels: nothing else of it can change.
func (a *API) UpdateSecret(ctx context.Context, ref string, version uint64, spec swarm.SecretSpec) error {
	_, err := write(ctx, a, "secret.update", updateReq[swarm.SecretSpec]{ref, version, spec}, a.updateSecret)
	return err
}

func (a *API) updateSecret(ctx context.Context, r updateReq[swarm.SecretSpec]) (none, error) {
	old, err := findSecret(a.Store.View(), r.Ref)
	if err != nil {
		return none{}, err
	}
	if err := checkRelabelling(old.Spec, &r.Spec); err != nil {
		return none{}, err
	}
	if r.Version != old.Version {
		return none{}, outOfSequence()
	}
	n, spec := *old, *old.Spec
	spec.Labels = r.Spec.Labels
	n.Spec = &spec
	return none{}, a.propose(ctx, store.UpdateSecret(&n))
}

// RemoveSecret removes a secret that no service refers to.
func (a *API) RemoveSecret(ctx context.Context, ref string) error {
	_, err := write(ctx, a, "secret.remove", refReq{ref}, a.removeSecret)
	return err
}

func (a *API) removeSecret(ctx context.Context, r refReq) (none, error) {
	v := a.Store.View()
	s, err := findSecret(v, r.Ref)
	if err != nil {
		return none{}, err
	}
	users := usersOf(v, func(c *swarm.ContainerSpec) bool {
		return slices.ContainsFunc(c.Secrets, func(r *swarm.SecretReference) bool { return r.SecretID == s.ID })
	})
	if err := inUse("secret", s.Spec.Name, users); err != nil {
		return none{}, err
	}
	c := store.DeleteSecret(s)
	c.Expect = 0
	return none{}, a.propose(ctx, c)
}
