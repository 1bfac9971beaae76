package daemon

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/httpapi"
	"github.com/skep-dev/skep/internal/servicelogs"
	"github.com/skep-dev/skep/internal/swarm"
)

// membership makes this host's part in a swarm, out of its rooms.
func membership(c *Config, host httpapi.Host, r *rooms, log *slog.Logger) (*swarm.Node, error) {
	labels := map[string]string{}
	for _, l := range c.Labels {
		key, value, _ := strings.Cut(l, "=")
		labels[key] = value
	}
	desc, err := agent.Describe(host.Name, host.Version, labels)
	if err != nil {
		return nil, err
	}
	node := swarm.New(swarm.Config{
		Dir: filepath.Join(c.DataRoot, "swarm"),
		NewAgent: func(nodeID string) swarm.Agent {
			return agent.New(agent.Config{
				Dir: filepath.Join(c.DataRoot, "agent"), RunDir: filepath.Join(c.ExecRoot, "agent"),
				Runtime: agent.Host{Engine: r.engine, Images: r.images}, Network: r.networks,
				NodeID: nodeID, Description: desc, Log: log.With("room", "agent"),
			})
		},
		Describe:         func() api.NodeDescription { return desc },
		Streams:          map[string]dispatch.StreamHandler{servicelogs.Kind: servicelogs.Serve(r.engine)},
		DefaultAdvertise: c.DefaultAdvertiseAddr,
		Log:              log.With("room", "swarm"),
	})
	r.users.node.Store(node)
	return node, nil
}

// swarmState returns the swarm's state as node, a manager, has it.
func swarmState(node *swarm.Node) func() (httpapi.Control, error) {
	return func() (httpapi.Control, error) {
		c, err := node.Control()
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// taskLogs reads tasks' logs through node, for as long as it is a manager.
type taskLogs struct{ node *swarm.Node }

func (t taskLogs) Logs(ctx context.Context, service, task string, opts engine.LogsOptions, head func(tty bool), yield func(servicelogs.Entry) error) error {
	c, err := t.node.Control()
	if err != nil {
		return err
	}
	r := servicelogs.Reader{Control: c, Nodes: opener{t.node}}
	return r.Logs(ctx, service, task, opts, head, yield)
}

// opener is a swarm.Node as servicelogs.Nodes.
type opener struct{ node *swarm.Node }

func (o opener) Open(ctx context.Context, nodeID, kind string, req any) (servicelogs.Frames, error) {
	return o.node.Open(ctx, nodeID, kind, req)
}
