package control

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
	"github.com/skep-dev/skep/internal/store"
)

// ServiceOptions are what a write of a service carries beside its spec.
type ServiceOptions struct {
	RegistryAuth string // as the header has it
	AuthFrom     string // "spec" or "previous-spec": where to take it from if there is none
	Rollback     string // "previous": the spec is ignored and the one before comes back
}

type listServices struct {
	Filters Filters
	Status  bool
}

type getService struct {
	Ref      string
	Defaults bool
}

type createService struct {
	Spec swarm.ServiceSpec
	Opts ServiceOptions
}

type updateService struct {
	Ref     string
	Version uint64
	Spec    swarm.ServiceSpec
	Opts    ServiceOptions
}

func (a *API) serviceMethods() {
	method(a, "services", a.services)
	method(a, "service", a.service)
	method(a, "service.create", a.createService)
	method(a, "service.update", a.updateService)
	method(a, "service.remove", a.removeService)
}

// Services lists services, with the numbers of their tasks if status is set.
func (a *API) Services(ctx context.Context, f Filters, status bool) ([]swarm.Service, error) {
	return read(ctx, a, "services", listServices{f, status}, a.services)
}

func (a *API) services(_ context.Context, r listServices) ([]swarm.Service, error) {
	f := r.Filters
	if err := filters.Check(f, "id", "name", "label", "mode", "runtime"); err != nil {
		return nil, err
	}
	v := a.Store.View()
	var out []swarm.Service
	for _, s := range v.Services() {
		if !filters.Prefixed(f, "id", s.ID) || !filters.Prefixed(f, "name", s.Spec.Name) || !filters.Labels(f, "label", s.Spec.Labels) ||
			!filters.Exact(f, "mode", modeOf(s.Spec.Mode)) || !filters.Exact(f, "runtime", "container") {
			continue
		}
		svc := serviceAPI(v, s, false)
		if r.Status {
			svc.ServiceStatus = statusOf(v, s)
		}
		out = append(out, svc)
	}
	return out, nil
}

func modeOf(m swarm.ServiceMode) string {
	switch {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

// statusOf counts a service's tasks.
func statusOf(v store.View, s *cluster.Service) *swarm.ServiceStatus {
	st := &swarm.ServiceStatus{}
	for _, t := range v.TasksOf(s.ID) {
		if t.Status.State == cluster.StateRunning && t.Desired <= cluster.StateComplete {
			st.RunningTasks++
		}
		if s.Spec.Mode.Global != nil && t.Desired == cluster.StateRunning {
			st.DesiredTasks++
		}
	}
	if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		st.DesiredTasks = *r.Replicas
	}
	return st
}

// Service returns one service, with its spec's defaults filled in if asked for.
func (a *API) Service(ctx context.Context, ref string, insertDefaults bool) (swarm.Service, error) {
	return read(ctx, a, "service", getService{ref, insertDefaults}, a.service)
}

func (a *API) service(_ context.Context, r getService) (swarm.Service, error) {
	v := a.Store.View()
	s, err := findService(v, r.Ref)
	if err != nil {
		return swarm.Service{}, err
	}
	return serviceAPI(v, s, r.Defaults), nil
}

// CreateService makes a service; one without a name is given one.
func (a *API) CreateService(ctx context.Context, spec swarm.ServiceSpec, opts ServiceOptions) (swarm.ServiceCreateResponse, error) {
	return write(ctx, a, "service.create", createService{spec, opts}, a.createService)
}

func (a *API) createService(ctx context.Context, r createService) (swarm.ServiceCreateResponse, error) {
	v := a.Store.View()
	spec := r.Spec
	if spec.Name == "" {
		spec.Name = someName(v)
	}
	if err := a.settleSpec(v, &spec, nil); err != nil {
		return swarm.ServiceCreateResponse{}, err
	}
	s := &cluster.Service{ID: cluster.NewID(), Spec: &spec, RegistryAuth: r.Opts.RegistryAuth}
	if err := a.propose(ctx, store.CreateService(s)); err != nil {
		return swarm.ServiceCreateResponse{}, err
	}
	a.Log.Info("service was created", "service", s.ID, "name", spec.Name)
	return swarm.ServiceCreateResponse{ID: s.ID}, nil
}

// settleSpec validates a service's spec and makes it as it is stored. self is
// the service it is for, nil for a new one.
func (a *API) settleSpec(v store.View, spec *swarm.ServiceSpec, self *cluster.Service) error {
	if err := normalize(spec); err != nil {
		return err
	}
	if err := validateService(spec); err != nil {
		return err
	}
	if err := unbuiltInService(spec); err != nil {
		return err
	}
	if err := resolveNetworks(v, spec); err != nil {
		return err
	}
	if err := checkPayloads(v, spec.TaskTemplate.ContainerSpec); err != nil {
		return err
	}
	if self == nil && v.ServiceByName(spec.Name) != nil {
		// The store would say so too; but before complaints about its ports.
		return alreadyExists("name conflicts with an existing object: service %s already exists", spec.Name)
	}
	return checkPortConflicts(v, spec, self)
}

// UpdateService writes a service's spec, or brings back the one before. The same
// spec again is no update.
func (a *API) UpdateService(ctx context.Context, ref string, version uint64, spec swarm.ServiceSpec, opts ServiceOptions) (swarm.ServiceUpdateResponse, error) {
	return write(ctx, a, "service.update", updateService{ref, version, spec, opts}, a.updateService)
}

func (a *API) updateService(ctx context.Context, r updateService) (resp swarm.ServiceUpdateResponse, err error) {
	return resp, a.edit(ctx, func(v store.View) ([]store.Change, error) {
		old, err := findService(v, r.Ref)
		if err != nil {
			return nil, err
		}
		n := *old
		if r.Opts.Rollback == "previous" {
			err = rollBack(&n, r)
		} else {
			err = a.update(v, &n, r)
		}
		if err != nil {
			return nil, err
		}
		return []store.Change{store.UpdateService(&n)}, nil
	})
}

// rollBack exchanges a service's spec with the one before.
func rollBack(n *cluster.Service, r updateService) error {
	if stale(r.Version, n.SpecVersion, n.Version) {
		return outOfSequence()
	}
	if n.Previous == nil {
		return precondition("service %s does not have a previous spec", n.ID)
	}
	now := time.Now()
	n.Spec, n.Previous = n.Previous, n.Spec
	n.RegistryAuth, n.PreviousAuth = n.PreviousAuth, n.RegistryAuth
	n.Update = &swarm.UpdateStatus{
		State: swarm.UpdateStateRollbackStarted, StartedAt: &now, Message: "manually requested rollback",
	}
	return nil
}

func (a *API) update(v store.View, n *cluster.Service, r updateService) error {
	spec := r.Spec
	if spec.Name == "" {
		spec.Name = n.Spec.Name
	}
	if err := a.settleSpec(v, &spec, n); err != nil {
		return err
	}
	if spec.Name != n.Spec.Name {
		return cluster.NotImplementedf("rpc error: code = Unimplemented desc = renaming services is not supported")
	}
	if modeOf(spec.Mode) != modeOf(n.Spec.Mode) {
		return cluster.NotImplementedf("rpc error: code = Unimplemented desc = service mode change is not allowed")
	}
	if stale(r.Version, n.SpecVersion, n.Version) {
		return outOfSequence()
	}
	auth := r.Opts.RegistryAuth
	if auth == "" {
		auth = n.RegistryAuth
		if r.Opts.AuthFrom == string(swarm.RegistryAuthFromPreviousSpec) {
			auth = n.PreviousAuth
		}
	}
	if equalJSON(&spec, n.Spec) {
		n.RegistryAuth = auth
		return nil
	}
	n.Previous, n.PreviousAuth = n.Spec, n.RegistryAuth
	n.Spec, n.RegistryAuth = &spec, auth
	n.Update = nil
	return nil
}

func equalJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// RemoveService removes a service; its tasks follow.
func (a *API) RemoveService(ctx context.Context, ref string) error {
	_, err := write(ctx, a, "service.remove", refReq{ref}, a.removeService)
	return err
}

func (a *API) removeService(ctx context.Context, r refReq) (none, error) {
	var s *cluster.Service
	err := a.edit(ctx, func(v store.View) (changes []store.Change, err error) {
		if s, err = findService(v, r.Ref); err != nil {
			return nil, err
		}
		return []store.Change{store.DeleteService(s)}, nil
	})
	if err != nil {
		return none{}, err
	}
	a.Log.Info("service was removed", "service", s.ID, "name", s.Spec.Name)
	return none{}, nil
}
