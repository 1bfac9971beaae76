package httpapi

import (
	"context"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// noSwarm is the Swarm of a daemon that was built without one: it answers as a
// node that has not joined any.
type noSwarm struct{}

func errNotManager() error {
	return cluster.Unavailablef(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}

func errNoSwarm() error { return cluster.Unavailablef("This node is not part of a swarm") }

func (noSwarm) Info(context.Context) swarm.Info {
	return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
}
func (noSwarm) Init(context.Context, swarm.InitRequest) (string, error) {
	return "", cluster.NotImplementedf("this daemon cannot start a swarm")
}
func (noSwarm) Join(context.Context, swarm.JoinRequest) error {
	return cluster.NotImplementedf("this daemon cannot join a swarm")
}
func (noSwarm) Leave(context.Context, bool) error    { return errNoSwarm() }
func (noSwarm) Unlock(context.Context, string) error { return errNoSwarm() }

func (noSwarm) Swarm(context.Context) (swarm.Swarm, error) { return swarm.Swarm{}, errNotManager() }
func (noSwarm) UpdateSwarm(context.Context, uint64, swarm.Spec, UpdateFlags) error {
	return errNotManager()
}
func (noSwarm) UnlockKey(context.Context) (string, error) { return "", errNotManager() }

func (noSwarm) Nodes(context.Context, Filters) ([]swarm.Node, error) { return nil, errNotManager() }
func (noSwarm) Node(context.Context, string) (swarm.Node, error) {
	return swarm.Node{}, errNotManager()
}
func (noSwarm) UpdateNode(context.Context, string, uint64, swarm.NodeSpec) error {
	return errNotManager()
}
func (noSwarm) RemoveNode(context.Context, string, bool) error { return errNotManager() }

func (noSwarm) Services(context.Context, Filters, bool) ([]swarm.Service, error) {
	return nil, errNotManager()
}
func (noSwarm) Service(context.Context, string, bool) (swarm.Service, error) {
	return swarm.Service{}, errNotManager()
}
func (noSwarm) CreateService(context.Context, swarm.ServiceSpec, ServiceOptions) (swarm.ServiceCreateResponse, error) {
	return swarm.ServiceCreateResponse{}, errNotManager()
}
func (noSwarm) UpdateService(context.Context, string, uint64, swarm.ServiceSpec, ServiceOptions) (swarm.ServiceUpdateResponse, error) {
	return swarm.ServiceUpdateResponse{}, errNotManager()
}
func (noSwarm) RemoveService(context.Context, string) error { return errNotManager() }

func (noSwarm) Tasks(context.Context, Filters) ([]swarm.Task, error) { return nil, errNotManager() }
func (noSwarm) Task(context.Context, string) (swarm.Task, error) {
	return swarm.Task{}, errNotManager()
}

func (noSwarm) Secrets(context.Context, Filters) ([]swarm.Secret, error) {
	return nil, errNotManager()
}
func (noSwarm) Secret(context.Context, string) (swarm.Secret, error) {
	return swarm.Secret{}, errNotManager()
}
func (noSwarm) CreateSecret(context.Context, swarm.SecretSpec) (string, error) {
	return "", errNotManager()
}
func (noSwarm) UpdateSecret(context.Context, string, uint64, swarm.SecretSpec) error {
	return errNotManager()
}
func (noSwarm) RemoveSecret(context.Context, string) error { return errNotManager() }

func (noSwarm) Configs(context.Context, Filters) ([]swarm.Config, error) {
	return nil, errNotManager()
}
func (noSwarm) Config(context.Context, string) (swarm.Config, error) {
	return swarm.Config{}, errNotManager()
}
func (noSwarm) CreateConfig(context.Context, swarm.ConfigSpec) (string, error) {
	return "", errNotManager()
}
func (noSwarm) UpdateConfig(context.Context, string, uint64, swarm.ConfigSpec) error {
	return errNotManager()
}
func (noSwarm) RemoveConfig(context.Context, string) error { return errNotManager() }

func (noSwarm) Networks(context.Context) ([]network.Inspect, error) { return nil, errNotManager() }
func (noSwarm) Network(context.Context, string) (network.Inspect, error) {
	return network.Inspect{}, errNotManager()
}
func (noSwarm) CreateNetwork(context.Context, network.CreateRequest) (string, error) {
	return "", errNotManager()
}
func (noSwarm) RemoveNetwork(context.Context, string) error { return errNotManager() }

func (noSwarm) Logs(context.Context, string, string, engine.LogsOptions, func(bool), func(TaskLog) error) error {
	return errNotManager()
}
