package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"

	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/httpapi"
	"github.com/skep-dev/skep/internal/network"
	"github.com/skep-dev/skep/internal/servicelogs"
	"github.com/skep-dev/skep/internal/store"
	"github.com/skep-dev/skep/internal/swarm"
	"github.com/skep-dev/skep/internal/swarmevents"
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
		Dir: filepath.Join(c.DataRoot, "swarm"), Founded: r.founded,
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
	r.link.node.Store(node)
	return node, nil
}

// link is the network room's way to the swarm. The room is opened first, since
// containers that run on need their networks at once: node is bound late.
type link struct{ node atomic.Pointer[swarm.Node] }

// DataAddr tells where this node receives overlay traffic; zero in no swarm.
func (l *link) DataAddr() netip.Addr {
	if n := l.node.Load(); n != nil {
		return n.DataAddr()
	}
	return netip.Addr{}
}

// Attach implements network.Swarm.
func (l *link) Attach(ctx context.Context, netRef, containerID string, wanted netip.Addr, names []string) (network.Place, error) {
	n := l.node.Load()
	if n == nil {
		return network.Place{}, cluster.NotFoundf("network %s not found", netRef)
	}
	at, err := n.Attach(ctx, dispatch.AttachRequest{Network: netRef, ContainerID: containerID, Addr: wanted, Names: names})
	return network.Place{TaskID: at.TaskID, NetworkID: at.NetworkID, Addr: at.Addr}, err
}

// Detach implements network.Swarm.
func (l *link) Detach(ctx context.Context, taskID string) error {
	n := l.node.Load()
	if n == nil {
		return cluster.Unavailablef("the swarm is not open yet")
	}
	return n.Detach(ctx, taskID)
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

// swarmEvents publishes what changes in the swarm while node is a manager.
func swarmEvents(node *swarm.Node, r *rooms) *swarmevents.Watcher {
	return &swarmevents.Watcher{Publish: r.engine.PublishSwarm, Woken: r.founded, State: func() (*store.Store, error) {
		c, err := node.Control()
		if err != nil {
			return nil, err
		}
		return c.Store, nil
	}}
}

// taskLogs reads tasks' logs through node, for as long as it is a manager.
type taskLogs struct{ node *swarm.Node }

func (t taskLogs) Logs(ctx context.Context, service, task string, opts engine.LogsOptions, head func(tty bool), yield func(servicelogs.Entry) error) error {
	c, err := t.node.Control()
	if err != nil {
		return err
	}
	r := servicelogs.Reader{Control: c, Nodes: opener(t)}
	return r.Logs(ctx, service, task, opts, head, yield)
}

// opener is a swarm.Node as servicelogs.Nodes.
type opener struct{ node *swarm.Node }

func (o opener) Open(ctx context.Context, nodeID, kind string, req any) (servicelogs.Frames, error) {
	return o.node.Open(ctx, nodeID, kind, req)
}
