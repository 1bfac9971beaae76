package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

// watcher gathers the truth while it happens: the processes' ends from every
// engine's events, the rest from the leader.
type watcher struct {
	f        *fleet
	service  string
	machines []string
	clients  map[string]*http.Client
	stop     context.CancelFunc
	done     sync.WaitGroup

	mu       sync.Mutex
	h        truth
	names    map[string]string // host name by node id
	states   map[string]swarm.NodeState
	leads    string    // who led at the last poll
	polled   time.Time // when the last poll began
	terms    int       // leaders seen
	off      map[string]bool
	holding  bool // a leader is being lost: who hears it is not known
	running  int
	clearing []time.Duration // from a process's end to the engine's event
}

func watch(f *fleet, service string, machines []string) *watcher {
	w := &watcher{f: f, service: service, machines: machines, clients: map[string]*http.Client{}, off: map[string]bool{},
		names: map[string]string{}, states: map[string]swarm.NodeState{},
		h: truth{tasks: map[string]*lifespan{}, deaf: map[string][]span{}}}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	for _, m := range machines {
		sock := filepath.Join(f.root, m, "skep.sock")
		w.clients[m] = &http.Client{Transport: &http.Transport{MaxIdleConns: 2, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		}}}
		w.done.Go(func() { w.ends(ctx, m) })
	}
	w.done.Go(func() {
		for tick := time.NewTicker(pollEvery); ctx.Err() == nil; {
			w.poll(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
			}
		}
	})
	return w
}

// end stops watching and returns what was seen.
func (w *watcher) end() *truth {
	w.stop()
	w.done.Wait()
	return &w.h
}

func (w *watcher) get(ctx context.Context, machine, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://skep"+path, nil)
	if err != nil {
		return err
	}
	resp, err := w.clients[machine].Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// ends follows an engine's events and notes when processes of tasks ended.
func (w *watcher) ends(ctx context.Context, machine string) {
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://skep/events?filters="+url.QueryEscape(`{"type":{"container":true},"event":{"die":true}}`), nil)
		if err != nil {
			panic(err)
		}
		if resp, err := w.clients[machine].Do(req); err == nil {
			dec := json.NewDecoder(resp.Body)
			for {
				var e events.Message
				if dec.Decode(&e) != nil {
					break
				}
				w.ended(e.Actor.Attributes["com.docker.swarm.task.id"], w.exited(ctx, machine, e), false)
			}
			resp.Body.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollEvery):
		}
	}
}

// exited returns when the process of an event ended. The event comes when all that
// the container held is cleared away.
func (w *watcher) exited(ctx context.Context, machine string, e events.Message) time.Time {
	at := time.Unix(0, e.TimeNano)
	var c container.InspectResponse
	if w.get(ctx, machine, "/containers/"+e.Actor.ID+"/json", &c) != nil || c.State == nil {
		return at
	}
	exact, err := time.Parse(time.RFC3339Nano, c.State.FinishedAt)
	if err != nil || exact.After(at) || c.State.Running {
		return at
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clearing = append(w.clearing, at.Sub(exact))
	return exact
}

// ended notes a task's end, unless an earlier one is known.
func (w *watcher) ended(task string, at time.Time, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if task == "" {
		return
	}
	l := w.task(task)
	if l.gone.IsZero() || at.Before(l.gone) && !l.cut {
		l.gone, l.cut = at, cut
	}
}

func (w *watcher) task(id string) *lifespan {
	if w.h.tasks[id] == nil {
		w.h.tasks[id] = &lifespan{id: id}
	}
	return w.h.tasks[id]
}

// leader finds the manager that says of itself that it leads.
func (w *watcher) leader(ctx context.Context) (string, []swarm.Node) {
	first := w.leads
	for _, m := range append([]string{first}, w.machines...) {
		if w.clients[m] == nil {
			continue
		}
		var nodes []swarm.Node
		if w.get(ctx, m, "/nodes", &nodes) != nil {
			continue
		}
		for _, n := range nodes {
			if n.Description.Hostname == m && n.ManagerStatus != nil && n.ManagerStatus.Leader {
				return m, nodes
			}
		}
	}
	return "", nil
}

// poll asks the leader for nodes and tasks.
func (w *watcher) poll(ctx context.Context) {
	begun := time.Now()
	name, nodes := w.leader(ctx)
	var tasks []swarm.Task
	if name == "" || w.get(ctx, name, "/tasks?filters="+url.QueryEscape(`{"service":["`+w.service+`"]}`), &tasks) != nil {
		return
	}
	now := time.Now()
	w.mu.Lock()
	w.nodes(name, nodes, begun, now)
	w.polled = begun
	w.mu.Unlock()
	w.note(tasks, now)
}

// nodes notes who hears the leader. Its mutex is held.
func (w *watcher) nodes(leader string, nodes []swarm.Node, begun, now time.Time) {
	changed := leader != w.leads
	if changed {
		w.terms++
		w.leads = leader
	}
	for _, n := range nodes {
		host := n.Description.Hostname
		w.names[n.ID] = host
		w.states[host] = n.Status.State
		if w.polled.IsZero() {
			continue
		}
		if (changed || n.Status.State != swarm.NodeStateReady) && !w.isDeaf(host) {
			w.h.deaf[host] = append(w.h.deaf[host], span{from: w.polled})
		}
		// The first answer of a new leader may be older than its first look.
		if !changed && !w.holding && n.Status.State == swarm.NodeStateReady && !w.off[host] && w.isDeaf(host) {
			last := &w.h.deaf[host][len(w.h.deaf[host])-1]
			if begun.After(last.from) {
				last.until = now
			}
		}
	}
}

func (w *watcher) isDeaf(host string) bool {
	s := w.h.deaf[host]
	return len(s) > 0 && s[len(s)-1].until.IsZero()
}

// note notes tasks with their addresses and ends.
func (w *watcher) note(tasks []swarm.Task, now time.Time) {
	here := map[string]bool{}
	running := 0
	for _, t := range tasks {
		here[t.ID] = true
		w.mu.Lock()
		l, host := w.task(t.ID), w.names[t.NodeID]
		if l.node == "" {
			l.node = host
		}
		if len(l.addrs) == 0 {
			for _, a := range t.NetworksAttachments {
				if a.Network.Spec.Name == followNet {
					for _, p := range a.Addresses {
						l.addrs = append(l.addrs, p.Addr().String())
					}
				}
			}
		}
		if l.up.IsZero() && t.Status.State == swarm.TaskStateRunning {
			l.up = now
		}
		lost := w.off[host] && w.states[host] == swarm.NodeStateDown
		w.mu.Unlock()
		if ended(t.Status.State) {
			w.ended(t.ID, now, false)
		} else if lost {
			w.ended(t.ID, now, true)
		}
		if t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning {
			running++
		}
	}
	w.mu.Lock()
	w.running = running
	var missing []string
	for id, l := range w.h.tasks {
		if !here[id] && l.gone.IsZero() && l.node != "" {
			missing = append(missing, id)
		}
	}
	w.mu.Unlock()
	for _, id := range missing {
		w.ended(id, now, false)
	}
}

func ended(s swarm.TaskState) bool {
	switch s {
	case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned:
		return true
	}
	return false
}

// power notes that a machine is switched off, or is on again.
func (w *watcher) power(machine string, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off[machine] = !on
	if !on && !w.isDeaf(machine) {
		w.h.deaf[machine] = append(w.h.deaf[machine], span{from: time.Now()})
	}
}

// losing has the leader lost by a function: nobody hears it from now on, until
// another answers.
func (w *watcher) losing(lose func()) {
	w.silence(true)
	lose()
	w.silence(false)
}

func (w *watcher) silence(begin bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding, w.leads = begin, ""
	for _, m := range w.machines {
		if !w.isDeaf(m) {
			w.h.deaf[m] = append(w.h.deaf[m], span{from: time.Now()})
		}
	}
}

// state returns who leads and what it thinks of a node.
func (w *watcher) state(machine string) (leader string, s swarm.NodeState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leads, w.states[machine]
}

// heard reports whether every node hears the leader.
func (w *watcher) heard() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if w.isDeaf(m) {
			return false
		}
	}
	return w.leads != ""
}
