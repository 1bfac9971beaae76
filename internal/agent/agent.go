// Package agent is a node's side of the swarm: it takes in what managers want of
// the node, has one worker a task bring it about, and says what it observes. It
// keeps the tasks on disk, so that a restart of the daemon finds its containers
// and goes on before any manager is reached. It never talks to managers: a
// dispatch.Client feeds it and reads its statuses. swarm makes one for each node.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/cluster"
)

// Network is what the agent asks of the network manager; see network.Manager.
type Network interface {
	Apply(ctx context.Context, complete bool, items []cluster.Item) error
	LeaveSwarm(ctx context.Context) error
}

// Config is what New makes an Agent from. All but Log is needed.
type Config struct {
	// Dir keeps the tasks; it outlives a reboot.
	Dir string
	// RunDir keeps the payloads of secrets and configs; a reboot clears it. It
	// should be in memory.
	RunDir  string
	Runtime Runtime
	Network Network
	NodeID  string
	// Description says what the node is; templates see its host name and platform.
	Description swarm.NodeDescription
	Log         *slog.Logger
}

// retryAfter is how long what failed for a passing reason waits.
const retryAfter = time.Second

// followWithin is how long Assign waits for a network that cannot be built.
// After that the rest of the assignment counts; the network is tried on, and the
// tasks that need it wait and say why.
const followWithin = 5 * time.Second

// Agent runs a node's tasks. Run owns the workers.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	assigns chan assignment
	ended   chan string   // ids of tasks that are done with
	changed chan struct{} // capacity 1
	starts  chan struct{} // held by each task that is being created or started

	workers map[string]*worker // Run's alone
	items   map[itemKey]cluster.Item
	wg      sync.WaitGroup

	mu       sync.Mutex
	statuses map[string]cluster.Status         // guarded by mu
	networks map[string]*cluster.WantedNetwork // guarded by mu
	secrets  map[string]*cluster.Secret        // guarded by mu
	configs  map[string]*cluster.Config        // guarded by mu
	netErr   error                             // why the data path does not follow; guarded by mu
}

type itemKey struct {
	kind cluster.ItemKind
	id   string
}

type assignment struct {
	ctx      context.Context
	complete bool
	items    []cluster.Item
	done     chan error
}

// New makes an agent. It reads nothing.
func New(cfg Config) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		cfg: cfg, log: cfg.Log,
		assigns: make(chan assignment), ended: make(chan string), changed: make(chan struct{}, 1),
		starts:  make(chan struct{}, max(4, 2*runtime.NumCPU())),
		workers: map[string]*worker{}, items: map[itemKey]cluster.Item{},
		statuses: map[string]cluster.Status{}, networks: map[string]*cluster.WantedNetwork{},
		secrets: map[string]*cluster.Secret{}, configs: map[string]*cluster.Config{},
	}
}

// Run takes up the tasks found on disk and serves until ctx ends. Containers go
// on without it.
func (a *Agent) Run(ctx context.Context) error {
	records, err := a.load()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	for _, r := range records {
		a.spawn(ctx, r)
	}
	for {
		var again <-chan time.Time
		if a.networkErr() != nil {
			again = time.After(retryAfter)
		}
		select {
		case as := <-a.assigns:
			as.done <- a.follow(ctx, as)
		case id := <-a.ended:
			a.forget(id)
		case <-again:
			a.setNetworkErr(a.cfg.Network.Apply(ctx, true, a.networkItems()))
		case <-ctx.Done():
			return nil
		}
	}
}

// Assign brings the node to the wanted items: the whole set when complete, else
// what changed. It returns when the tasks are told and the data path follows.
func (a *Agent) Assign(ctx context.Context, complete bool, items []cluster.Item) error {
	as := assignment{ctx: ctx, complete: complete, items: items, done: make(chan error, 1)}
	select {
	case a.assigns <- as:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-as.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Statuses returns what is observed of every task the node has, by task id.
func (a *Agent) Statuses() map[string]cluster.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.statuses)
}

// Changed signals after each change of Statuses. It carries no data, merges, and
// has one reader.
func (a *Agent) Changed() <-chan struct{} { return a.changed }

// follow takes in an assignment: networks first, so that they are there when a
// task starts and a task has left the balancers when it is told to stop.
func (a *Agent) follow(ctx context.Context, as assignment) error {
	forNetwork := a.remember(as)
	err := a.cfg.Network.Apply(ctx, as.complete, forNetwork)
	a.setNetworkErr(err)
	a.tellWorkers(ctx, as)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, followWithin)
	defer cancel()
	stop := context.AfterFunc(as.ctx, cancel)
	defer stop()
	for {
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			a.log.Warn("the data path does not follow the swarm and is tried on", "err", err)
			return nil
		}
		err = a.cfg.Network.Apply(ctx, true, a.networkItems())
		a.setNetworkErr(err)
		if err == nil {
			return nil
		}
	}
}

// remember notes everything but tasks and returns what the network is to apply.
func (a *Agent) remember(as assignment) (forNetwork []cluster.Item) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if as.complete {
		clear(a.items)
		clear(a.networks)
		clear(a.secrets)
		clear(a.configs)
	}
	for _, it := range as.items {
		switch it.Kind {
		case cluster.ItemNetwork:
			if it.Network == nil {
				delete(a.networks, it.ID)
			} else {
				a.networks[it.ID] = it.Network
			}
		case cluster.ItemSecret:
			if it.Secret == nil {
				delete(a.secrets, it.ID)
			} else {
				a.secrets[it.ID] = it.Secret
			}
			continue
		case cluster.ItemConfig:
			if it.Config == nil {
				delete(a.configs, it.ID)
			} else {
				a.configs[it.ID] = it.Config
			}
			continue
		case cluster.ItemPeer, cluster.ItemEndpoint, cluster.ItemService:
		default:
			continue
		}
		if it.Network != nil && it.Network.Driver != overlay {
			continue // a network of the host's own
		}
		forNetwork = append(forNetwork, it)
		key := itemKey{it.Kind, it.ID}
		if it.Network == nil && it.Peer == nil && it.Endpoint == nil && it.Service == nil {
			delete(a.items, key)
		} else {
			a.items[key] = it
		}
	}
	return forNetwork
}

const overlay = "overlay"

// networkItems returns the complete set for the network, in a fixed order.
func (a *Agent) networkItems() []cluster.Item {
	a.mu.Lock()
	defer a.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(a.items), func(x, y itemKey) int {
		if x.kind != y.kind {
			return int(x.kind) - int(y.kind)
		}
		if x.id < y.id {
			return -1
		}
		return 1
	})
	all := make([]cluster.Item, 0, len(keys))
	for _, k := range keys {
		all = append(all, a.items[k])
	}
	return all
}

// tellWorkers hands each task's worker what is wanted of it.
func (a *Agent) tellWorkers(ctx context.Context, as assignment) {
	named := map[string]bool{}
	for _, it := range as.items {
		if it.Kind != cluster.ItemTask {
			continue
		}
		if it.Task == nil {
			a.tell(it.ID, nil)
			continue
		}
		named[it.ID] = true
		if a.workers[it.ID] == nil {
			a.accept(ctx, it.Task)
		} else {
			a.tell(it.ID, it.Task)
		}
	}
	if !as.complete {
		return
	}
	for id := range a.workers {
		if !named[id] {
			a.tell(id, nil)
		}
	}
}

func (a *Agent) tell(id string, t *cluster.WantedTask) {
	w := a.workers[id]
	if w == nil {
		return
	}
	select {
	case <-w.wants: // what it has not read yet is overtaken
	default:
	}
	w.wants <- wish{t}
}

// accept takes on a new task.
func (a *Agent) accept(ctx context.Context, t *cluster.WantedTask) {
	if !validID(t.ID) || t.Spec == nil {
		a.log.Warn("a task that is not understood is left alone", "task", t.ID)
		return
	}
	r := record{Task: t, Status: cluster.Status{State: cluster.StateAccepted, At: time.Now(), Message: "accepted"}}
	if err := a.save(r); err != nil {
		a.log.Warn("a task may be forgotten at a restart", "task", t.ID, "err", err)
	}
	a.spawn(ctx, r)
}

func (a *Agent) spawn(ctx context.Context, r record) {
	w := &worker{a: a, wants: make(chan wish, 1), task: r.Task, status: r.Status}
	a.workers[r.Task.ID] = w
	a.publish(r.Task.ID, r.Status)
	a.wg.Go(func() { w.run(ctx) })
}

// forget drops a task whose worker has ended.
func (a *Agent) forget(id string) {
	delete(a.workers, id)
	if err := a.erase(id); err != nil {
		a.log.Warn("a task's record stays", "task", id, "err", err)
	}
	a.mu.Lock()
	delete(a.statuses, id)
	a.mu.Unlock()
	a.signal()
}

func (a *Agent) publish(id string, st cluster.Status) {
	a.mu.Lock()
	a.statuses[id] = st
	a.mu.Unlock()
	a.signal()
}

func (a *Agent) signal() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *Agent) networkErr() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.netErr
}

func (a *Agent) setNetworkErr(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.netErr = err
}

// Leave stops and removes every task's container and what the swarm built on
// this host. It is for after Run has ended; a second call finishes a first.
func (a *Agent) Leave(ctx context.Context) error {
	records, err := a.load()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(16)
	for _, r := range records {
		g.Go(func() error {
			if err := a.removeContainer(ctx, r.Task); err != nil {
				return fmt.Errorf("task %s: %w", r.Task.ID, err)
			}
			return a.erase(r.Task.ID)
		})
	}
	return errors.Join(g.Wait(), a.cfg.Network.LeaveSwarm(ctx), os.RemoveAll(a.cfg.RunDir))
}
