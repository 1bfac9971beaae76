package httpapi

import (
	"context"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/servicelogs"
)

// noMember is a daemon that was built without a swarm: it answers as a node that
// has not joined any.
type noMember struct{}

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

func (noMember) Logs(context.Context, string, string, engine.LogsOptions, func(bool), func(servicelogs.Entry) error) error {
	return errNotManager()
}
