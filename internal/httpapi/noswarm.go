package httpapi

import (
	"context"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/servicelogs"
)

// noMember is a daemon that was built without a swarm: it answers as a node that
// has not joined any.
type noMember struct{}

// refused is the Control of a node that has none: every method says why.
type refused struct{ err error }

// control returns the swarm's state; where there is none, its methods fail.
func (s *Server) control() Control {
	if s.Control == nil {
		return refused{errNotManager()}
	}
	c, err := s.Control()
	if err != nil {
		return refused{err}
	}
	return c
}

func errNotManager() error {
	return cluster.Unavailablef(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}

func errNoSwarm() error { return cluster.Unavailablef("This node is not part of a swarm") }

func (noMember) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
}
func (noMember) Init(context.Context, swarm.InitRequest) (string, error) {
	return "", cluster.NotImplementedf("this daemon cannot start a swarm")
}
func (noMember) Join(context.Context, swarm.JoinRequest) error {
	return cluster.NotImplementedf("this daemon cannot join a swarm")
}
func (noMember) Leave(context.Context, bool) error    { return errNoSwarm() }
func (noMember) Unlock(context.Context, string) error { return errNoSwarm() }

func (r refused) Swarm(context.Context) (swarm.Swarm, error) { return swarm.Swarm{}, r.err }
func (r refused) UpdateSwarm(context.Context, uint64, swarm.Spec, UpdateFlags) error {
	return r.err
}
func (r refused) UnlockKey(context.Context) (string, error) { return "", r.err }

func (r refused) Nodes(context.Context, Filters) ([]swarm.Node, error) { return nil, r.err }
func (r refused) Node(context.Context, string) (swarm.Node, error) {
	return swarm.Node{}, r.err
}
func (r refused) UpdateNode(context.Context, string, uint64, swarm.NodeSpec) error {
	return r.err
}
func (r refused) RemoveNode(context.Context, string, bool) error { return r.err }

func (r refused) Services(context.Context, Filters, bool) ([]swarm.Service, error) {
	return nil, r.err
}
func (r refused) Service(context.Context, string, bool) (swarm.Service, error) {
	return swarm.Service{}, r.err
}
func (r refused) CreateService(context.Context, swarm.ServiceSpec, ServiceOptions) (swarm.ServiceCreateResponse, error) {
	return swarm.ServiceCreateResponse{}, r.err
}
func (r refused) UpdateService(context.Context, string, uint64, swarm.ServiceSpec, ServiceOptions) (swarm.ServiceUpdateResponse, error) {
	return swarm.ServiceUpdateResponse{}, r.err
}
func (r refused) RemoveService(context.Context, string) error { return r.err }

func (r refused) Tasks(context.Context, Filters) ([]swarm.Task, error) { return nil, r.err }
func (r refused) Task(context.Context, string) (swarm.Task, error) {
	return swarm.Task{}, r.err
}

func (r refused) Secrets(context.Context, Filters) ([]swarm.Secret, error) {
	return nil, r.err
}
func (r refused) Secret(context.Context, string) (swarm.Secret, error) {
	return swarm.Secret{}, r.err
}
func (r refused) CreateSecret(context.Context, swarm.SecretSpec) (string, error) {
	return "", r.err
}
func (r refused) UpdateSecret(context.Context, string, uint64, swarm.SecretSpec) error {
	return r.err
}
func (r refused) RemoveSecret(context.Context, string) error { return r.err }

func (r refused) Configs(context.Context, Filters) ([]swarm.Config, error) {
	return nil, r.err
}
func (r refused) Config(context.Context, string) (swarm.Config, error) {
	return swarm.Config{}, r.err
}
func (r refused) CreateConfig(context.Context, swarm.ConfigSpec) (string, error) {
	return "", r.err
}
func (r refused) UpdateConfig(context.Context, string, uint64, swarm.ConfigSpec) error {
	return r.err
}
func (r refused) RemoveConfig(context.Context, string) error { return r.err }

func (r refused) Networks(context.Context) ([]network.Inspect, error) { return nil, r.err }
func (r refused) Network(context.Context, string) (network.Inspect, error) {
	return network.Inspect{}, r.err
}
func (r refused) CreateNetwork(context.Context, network.CreateRequest) (string, error) {
	return "", r.err
}
func (r refused) RemoveNetwork(context.Context, string) error { return r.err }

func (noMember) Logs(context.Context, string, string, engine.LogsOptions, func(bool), func(servicelogs.Entry) error) error {
	return errNotManager()
}
