package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Fleet plays the nodes: their agents, their containers, and whether they are
// heard of.
type Fleet struct {
	s        *Swarm
	dice     *dice
	orders   chan func() // run by the one goroutine that owns the fields below
	machines map[string]*machine
	names    map[string]string // ids by host name
}

// machine is a node as it really is.
type machine struct {
	id         string
	cut        bool // nobody hears of it
	off        bool // nothing runs on it
	anew       bool // it registers anew: it says everything again
	containers map[string]*container
}

// container is a task's as it really is.
type container struct {
	task    string
	part    Part
	desired cluster.State // as it was told last
	holds   []held        // addresses
	ports   []swarm.PortConfig
	state   cluster.State
	serving bool
	stop    bool // told to
	due     time.Time
	ended   time.Time
	begun   time.Time
	err     string
	exit    int
}

// Part is how a container behaves; the image of a spec names it, with numbers
// after it: "crash 2s" runs for 2 s and fails. Parts: "ok", "crash D", "once D"
// (ends well after D), "reject", "never" (prepares for ever), "slow D" (takes D
// to prepare), "mute" (runs and never serves), "stubborn" (does not stop).
type Part struct {
	kind string
	d    time.Duration
}

func partOf(image string) Part {
	kind, rest, _ := strings.Cut(image, " ")
	d, _ := time.ParseDuration(rest)
	return Part{kind, d}
}

func newFleet(s *Swarm) *Fleet {
	return &Fleet{s: s, dice: newDice(s.seed, "fleet"), orders: make(chan func()), machines: map[string]*machine{}, names: map[string]string{}}
}

// do runs f in the fleet's goroutine.
func (f *Fleet) do(do func()) {
	done := make(chan struct{})
	select {
	case f.orders <- func() { do(); close(done) }:
		<-done
	case <-f.s.ctx.Done():
	}
}

func (f *Fleet) run(ctx context.Context) {
	wake, stop := f.s.Store.Watch(store.KindTask)
	defer stop()
	for {
		next := f.pass(ctx, time.Now())
		timer := time.NewTimer(max(time.Millisecond, time.Until(next)))
		select {
		case <-wake:
		case <-timer.C:
		case do := <-f.orders:
			do()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// pass brings every machine on and reports what is new; it returns when the next
// thing happens.
func (f *Fleet) pass(ctx context.Context, now time.Time) time.Time {
	next := now.Add(time.Hour)
	v := f.s.View()
	var soft []store.Observation
	var hard []store.Change
	for _, id := range sortedKeys(f.machines) {
		m := f.machines[id]
		if m.anew && !m.cut {
			hard = append(hard, f.everything(m, v)...)
			if f.s.propose(ctx, f.dice, f.s.leader(), hard...) != nil {
				next = minTime(next, now.Add(100*time.Millisecond))
				hard = nil
				continue // no leader: told again later
			}
			hard, m.anew = nil, false
			v = f.s.View()
		}
		if !m.cut {
			f.listen(m, v, now)
		}
		for _, task := range sortedKeys(m.containers) {
			c := m.containers[task]
			for c.due.Before(now.Add(1)) && !c.state.Terminal() && !m.off {
				f.advance(c, now)
			}
			if !c.due.IsZero() && c.due.Before(next) && !c.state.Terminal() && !m.off {
				next = c.due
			}
			if t := v.Task(task); t != nil && !m.cut && !m.off && behind(t.Status, c) {
				if st := f.status(c); st.State < cluster.StateRunning {
					soft = append(soft, store.Observation{TaskID: task, Status: st})
				} else {
					hard = append(hard, store.SetStatus(task, st))
				}
			}
		}
	}
	f.really(v)
	if len(soft) > 0 {
		f.s.Store.ObserveAll(soft)
	}
	for len(hard) > 0 {
		n := min(len(hard), 500)
		if err := f.s.propose(ctx, f.dice, f.s.leader(), hard[:n]...); err != nil {
			return minTime(next, now.Add(100*time.Millisecond)) // no leader: told again later
		}
		hard = hard[n:]
	}
	return next
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func sortedKeys[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// behind reports whether the managers do not know yet how far a container is.
func behind(st cluster.Status, c *container) bool {
	return st.State < c.state || st.State == c.state && st.State == cluster.StateRunning && st.Serving != c.serving
}

// listen takes in what the managers want of a machine.
func (f *Fleet) listen(m *machine, v store.View, now time.Time) {
	told := map[string]bool{}
	for _, t := range v.TasksOn(m.id) {
		if t.Status.State < cluster.StateAssigned || t.Attach != nil {
			continue
		}
		told[t.ID] = true
		c := m.containers[t.ID]
		switch {
		case c == nil && t.Status.State.Terminal():
		case c == nil:
			c = f.container(v, t, now)
			if t.Desired > cluster.StateRunning || t.Status.State == cluster.StateRunning {
				// Told to stop what it never had, or lost in a power cut.
				c.state, c.ended = cluster.StateShutdown, now
				if t.Desired <= cluster.StateRunning {
					c.state, c.err, c.exit = cluster.StateFailed, "task: non-zero exit (137)", 137
				}
			}
			m.containers[t.ID] = c
		}
		if c != nil && c.desired != t.Desired {
			c.desired = t.Desired
			if c.state == cluster.StateReady {
				c.due = now
			}
		}
		if c != nil && !c.stop && (t.Desired > cluster.StateRunning || t.Status.State.Terminal()) && !c.state.Terminal() {
			c.stop, c.serving = true, false
			c.due = now.Add(50*time.Millisecond + f.dice.Random(time.Second))
			if c.part.kind == "stubborn" {
				c.due = now.Add(1000 * time.Hour)
			}
		}
	}
	for task := range m.containers {
		if !told[task] {
			delete(m.containers, task)
		}
	}
}

// container makes what a task asks for.
func (f *Fleet) container(v store.View, t *cluster.Task, now time.Time) *container {
	spec := v.SpecOf(t.ServiceID, t.SpecVersion).Spec
	c := &container{
		task: t.ID, part: partOf(spec.TaskTemplate.ContainerSpec.Image),
		desired: t.Desired, state: cluster.StateAssigned, due: now,
	}
	for _, a := range t.Networks {
		c.holds = append(c.holds, held{a.NetworkID, a.Addr})
	}
	if spec.EndpointSpec != nil {
		for _, p := range spec.EndpointSpec.Ports {
			if cluster.HostPort(p) && p.PublishedPort != 0 {
				c.ports = append(c.ports, p)
			}
		}
	}
	return c
}

// advance takes a container one step further. It knows what its machine was told,
// which may be long ago.
func (f *Fleet) advance(c *container, now time.Time) {
	step := 5*time.Millisecond + f.dice.Random(50*time.Millisecond)
	c.due = now.Add(step)
	if c.stop {
		c.state, c.ended = cluster.StateShutdown, now
		return
	}
	switch c.state {
	case cluster.StateAssigned:
		c.state = cluster.StateAccepted
	case cluster.StateAccepted:
		c.state = cluster.StatePreparing
		switch c.part.kind {
		case "never":
			c.due = now.Add(1000 * time.Hour)
		case "slow":
			c.due = now.Add(c.part.d)
		}
	case cluster.StatePreparing:
		c.state = cluster.StateReady
		if c.part.kind == "reject" {
			c.state, c.ended, c.err = cluster.StateRejected, now, "No such image: "+c.part.kind
		}
	case cluster.StateReady:
		if c.desired != cluster.StateRunning {
			c.due = now.Add(time.Hour) // listening wakes it
			return
		}
		c.state = cluster.StateStarting
	case cluster.StateStarting:
		c.state, c.begun, c.serving = cluster.StateRunning, now, c.part.kind != "mute"
		c.due = now.Add(1000 * time.Hour)
		if c.part.kind == "crash" || c.part.kind == "once" {
			c.due = now.Add(c.part.d)
		}
	case cluster.StateRunning:
		c.ended, c.serving = now, false
		c.state, c.err, c.exit = cluster.StateFailed, "task: non-zero exit (1)", 1
		if c.part.kind == "once" {
			c.state, c.err, c.exit = cluster.StateComplete, "", 0
		}
	}
}

func (f *Fleet) status(c *container) cluster.Status {
	at := time.Now()
	switch {
	case c.state.Terminal():
		at = c.ended
	case c.state == cluster.StateRunning:
		at = c.begun
	}
	return cluster.Status{
		State: c.state, At: at, Message: "started", Err: c.err, ExitCode: c.exit,
		Serving: c.serving, ContainerID: "c" + c.task,
	}
}

// Add lets a node join that is ready at once.
func (f *Fleet) Add(name string, change ...func(*cluster.Node)) string {
	f.s.T.Helper()
	n := &cluster.Node{
		ID:   f.s.NewID(),
		Spec: &swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive},
		Description: &swarm.NodeDescription{
			Hostname: name, Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"},
			Resources: swarm.Resources{NanoCPUs: 8e9, MemoryBytes: 16 << 30},
		},
		Role:   swarm.NodeRoleWorker,
		Status: cluster.NodeStatus{State: swarm.NodeStateReady, Since: time.Now()},
	}
	for _, c := range change {
		c(n)
	}
	f.do(func() {
		f.machines[n.ID] = &machine{id: n.ID, containers: map[string]*container{}}
		f.names[name] = n.ID
	})
	f.s.Must(store.CreateNode(n))
	return n.ID
}

// AddMany adds nodes node1 … nodeN.
func (f *Fleet) AddMany(n int) (ids []string) {
	for i := range n {
		ids = append(ids, f.Add(fmt.Sprintf("node%d", i+1)))
	}
	return ids
}

// Change writes a node as a user or its own report would.
func (f *Fleet) Change(id string, change func(*cluster.Node)) {
	f.s.T.Helper()
	err := f.s.write(f.s.ctx, func(v store.View) []store.Change {
		n := v.Node(id)
		if n == nil {
			return nil
		}
		c := *n
		spec, desc := clone(*n.Spec), clone(*n.Description)
		c.Spec, c.Description = &spec, &desc
		change(&c)
		return []store.Change{store.UpdateNode(&c)}
	})
	if err != nil && f.s.ctx.Err() == nil {
		f.s.T.Error(err)
	}
}

// Availability sets a node's availability.
func (f *Fleet) Availability(id string, a swarm.NodeAvailability) {
	f.s.T.Helper()
	f.Change(id, func(n *cluster.Node) { n.Spec.Availability = a })
}

// Leave removes a node from the swarm for good.
func (f *Fleet) Leave(id string) {
	f.s.T.Helper()
	f.do(func() { delete(f.machines, id) })
	err := f.s.write(f.s.ctx, func(v store.View) []store.Change {
		return []store.Change{store.DeleteNode(v.Node(id))}
	})
	if err != nil {
		f.s.T.Fatal(err)
	}
}

// Fail ends a task's container as docker kill would.
func (f *Fleet) Fail(t *cluster.Task) {
	f.do(func() {
		if m := f.machines[t.NodeID]; m != nil {
			if c := m.containers[t.ID]; c != nil && !c.state.Terminal() {
				c.state, c.serving, c.ended = cluster.StateFailed, false, time.Now()
				c.err, c.exit = "task: non-zero exit (137)", 137
			}
		}
	})
}

// Alive counts the containers of a service's tasks that really run.
func (f *Fleet) Alive(service string) (n int) {
	f.do(func() {
		v := f.s.View()
		for _, m := range f.machines {
			for id, c := range m.containers {
				if t := v.Task(id); !m.off && c.state == cluster.StateRunning && t != nil && t.ServiceID == service {
					n++
				}
			}
		}
	})
	return n
}
