package httpapi

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/control"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/filters"
	"github.com/skep-dev/skep/internal/servicelogs"
)

// Filters are the API's filters.
type Filters = filters.Filters

// Control is the swarm's state as a manager shows and changes it; *control.API is
// one. Errors are errdefs kinds with Docker's words.
type Control interface {
	Cluster
	Nodes
	Services
	Tasks
	Secrets
	Configs
	SwarmNetworks
}

// Member is this node as a member of a swarm, or of none.
type Member interface {
	// Info is the Swarm section of /info; it never fails and answers at once.
	Info(ctx context.Context) swarm.Info
	Init(ctx context.Context, req swarm.InitRequest) (nodeID string, err error)
	Join(ctx context.Context, req swarm.JoinRequest) error
	Leave(ctx context.Context, force bool) error
	Unlock(ctx context.Context, key string) error
}

// UpdateFlags say what is renewed along with the swarm's spec.
type UpdateFlags = control.UpdateFlags

// Cluster is the swarm as an object.
type Cluster interface {
	Swarm(ctx context.Context) (swarm.Swarm, error)
	UpdateSwarm(ctx context.Context, version uint64, spec swarm.Spec, flags UpdateFlags) error
	UnlockKey(ctx context.Context) (string, error)
}

// Nodes are the swarm's hosts. A ref is an id, a name or a unique prefix of an
// id, here and below.
type Nodes interface {
	Nodes(ctx context.Context, filters Filters) ([]swarm.Node, error)
	Node(ctx context.Context, ref string) (swarm.Node, error)
	UpdateNode(ctx context.Context, ref string, version uint64, spec swarm.NodeSpec) error
	RemoveNode(ctx context.Context, ref string, force bool) error
}

// ServiceOptions are what a write of a service carries beside its spec.
type ServiceOptions = control.ServiceOptions

// Services are what users want to run.
type Services interface {
	Services(ctx context.Context, filters Filters, status bool) ([]swarm.Service, error)
	Service(ctx context.Context, ref string, insertDefaults bool) (swarm.Service, error)
	CreateService(ctx context.Context, spec swarm.ServiceSpec, opts ServiceOptions) (swarm.ServiceCreateResponse, error)
	UpdateService(ctx context.Context, ref string, version uint64, spec swarm.ServiceSpec, opts ServiceOptions) (swarm.ServiceUpdateResponse, error)
	RemoveService(ctx context.Context, ref string) error
}

// Tasks are the containers services want.
type Tasks interface {
	Tasks(ctx context.Context, filters Filters) ([]swarm.Task, error)
	Task(ctx context.Context, ref string) (swarm.Task, error)
}

// Secrets are payloads that only their tasks can read.
type Secrets interface {
	Secrets(ctx context.Context, filters Filters) ([]swarm.Secret, error)
	Secret(ctx context.Context, ref string) (swarm.Secret, error)
	CreateSecret(ctx context.Context, spec swarm.SecretSpec) (id string, err error)
	UpdateSecret(ctx context.Context, ref string, version uint64, spec swarm.SecretSpec) error
	RemoveSecret(ctx context.Context, ref string) error
}

// Configs are like Secrets, readable by users.
type Configs interface {
	Configs(ctx context.Context, filters Filters) ([]swarm.Config, error)
	Config(ctx context.Context, ref string) (swarm.Config, error)
	CreateConfig(ctx context.Context, spec swarm.ConfigSpec) (id string, err error)
	UpdateConfig(ctx context.Context, ref string, version uint64, spec swarm.ConfigSpec) error
	RemoveConfig(ctx context.Context, ref string) error
}

// SwarmNetworks are the networks of scope swarm.
type SwarmNetworks interface {
	Networks(ctx context.Context) ([]network.Inspect, error)
	Network(ctx context.Context, ref string) (network.Inspect, error)
	CreateNetwork(ctx context.Context, req network.CreateRequest) (id string, err error)
	RemoveNetwork(ctx context.Context, ref string) error
}

// TaskLogs reads the logs of tasks, on whichever nodes they run;
// *servicelogs.Reader is one.
type TaskLogs interface {
	// Logs reads those of a service's tasks, or of one task: one of service and
	// task is set. head and yield are as with a container's logs.
	Logs(ctx context.Context, service, task string, opts engine.LogsOptions, head func(tty bool), yield func(servicelogs.Entry) error) error
}

func (s *Server) swarmRoutes() []route {
	return []route{
		{"GET /swarm", s.swarmInspect},
		{"GET /swarm/unlockkey", s.swarmUnlockKey},
		{"POST /swarm/init", s.swarmInit},
		{"POST /swarm/join", s.swarmJoin},
		{"POST /swarm/leave", s.swarmLeave},
		{"POST /swarm/update", s.swarmUpdate},
		{"POST /swarm/unlock", s.swarmUnlock},

		{"GET /nodes", list(s, Control.Nodes, "id", "label", "membership", "name", "node.label", "role")},
		{"GET /nodes/{id}", inspect(s, Control.Node)},
		{"POST /nodes/{id}/update", update(s, "node", Control.UpdateNode)},
		{"DELETE /nodes/{id}", s.nodeRemove},

		{"GET /services", s.serviceList},
		{"POST /services/create", s.serviceCreate},
		{"GET /services/{id}", s.serviceInspect},
		{"POST /services/{id}/update", s.serviceUpdate},
		{"GET /services/{id}/logs", s.serviceLogs},
		{"DELETE /services/{id}", s.remove(Control.RemoveService, http.StatusOK)},

		// _up-to-date is what the docker command line asks with to see a service converge.
		{"GET /tasks", list(s, Control.Tasks, "desired-state", "id", "label", "name", "node", "runtime", "service", "_up-to-date", "up-to-date")},
		{"GET /tasks/{id}", inspect(s, Control.Task)},
		{"GET /tasks/{id}/logs", s.taskLogs},

		{"GET /secrets", list(s, Control.Secrets, "id", "label", "name", "names")},
		{"POST /secrets/create", create(s, Control.CreateSecret)},
		{"GET /secrets/{id}", inspect(s, Control.Secret)},
		{"POST /secrets/{id}/update", update(s, "secret", Control.UpdateSecret)},
		{"DELETE /secrets/{id}", s.remove(Control.RemoveSecret, http.StatusNoContent)},

		{"GET /configs", list(s, Control.Configs, "id", "label", "name", "names")},
		{"POST /configs/create", create(s, Control.CreateConfig)},
		{"GET /configs/{id}", inspect(s, Control.Config)},
		{"POST /configs/{id}/update", update(s, "config", Control.UpdateConfig)},
		{"DELETE /configs/{id}", s.remove(Control.RemoveConfig, http.StatusNoContent)},
	}
}

// control returns the swarm's state, or why this node cannot tell it.
func (s *Server) control() (Control, error) { return s.Control() }

func (s *Server) nodeRemove(w http.ResponseWriter, r *http.Request) error {
	c, err := s.control()
	if err != nil {
		return err
	}
	return c.RemoveNode(r.Context(), r.PathValue("id"), boolParam(r.URL.Query(), "force"))
}

func (s *Server) swarmInit(w http.ResponseWriter, r *http.Request) error {
	var req swarm.InitRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	id, err := s.Member.Init(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, id)
}

func (s *Server) swarmJoin(w http.ResponseWriter, r *http.Request) error {
	var req swarm.JoinRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	return s.Member.Join(r.Context(), req)
}

func (s *Server) swarmLeave(w http.ResponseWriter, r *http.Request) error {
	return s.Member.Leave(r.Context(), boolParam(r.URL.Query(), "force"))
}

func (s *Server) swarmInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.control()
	if err != nil {
		return err
	}
	sw, err := c.Swarm(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, sw)
}

func (s *Server) swarmUpdate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.Spec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "swarm")
	if err != nil {
		return err
	}
	c, err := s.control()
	if err != nil {
		return err
	}
	q := r.URL.Query()
	return c.UpdateSwarm(r.Context(), version, spec, UpdateFlags{
		RotateWorkerToken:  boolParam(q, "rotateWorkerToken"),
		RotateManagerToken: boolParam(q, "rotateManagerToken"),
		RotateUnlockKey:    boolParam(q, "rotateManagerUnlockKey"),
	})
}

func (s *Server) swarmUnlock(w http.ResponseWriter, r *http.Request) error {
	var req swarm.UnlockRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	return s.Member.Unlock(r.Context(), req.UnlockKey)
}

func (s *Server) swarmUnlockKey(w http.ResponseWriter, r *http.Request) error {
	c, err := s.control()
	if err != nil {
		return err
	}
	key, err := c.UnlockKey(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, swarm.UnlockKeyResponse{UnlockKey: key})
}
