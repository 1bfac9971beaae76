// Package sim runs a whole control plane in one process on a fake clock: the
// real store and the real loops, with nodes that are played. Tests start it
// inside a testing/synctest bubble, do to it what happens to swarms, and see
// what becomes of it; after every log entry it checks what must always hold. No
// program contains it.
package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/allocate"
	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/reap"
	"github.com/skep-dev/skep/internal/rollout"
	"github.com/skep-dev/skep/internal/schedule"
	"github.com/skep-dev/skep/internal/services"
	"github.com/skep-dev/skep/internal/store"
)

// Swarm is a swarm in the simulation.
type Swarm struct {
	T     testing.TB
	Store *store.Store
	Fleet *Fleet

	log   chan struct{} // capacity 1: who holds it owns the next fields. Not a mutex: those freeze the fake clock
	check func(store.View) error
	truth bool // the containers themselves are checked, too; set before anything runs
	flaky int
	index uint64
	bytes int
	term  int // of the leader; -1: none

	terms int

	*dice // the test's own
	seed  int64

	ctx     context.Context
	depose  context.CancelFunc
	deposed sync.WaitGroup
}

// New makes a swarm with an ingress network, a leader and no nodes. Everything
// random comes from the seed. It ends with the test; call it in a bubble.
func New(t testing.TB, seed int64) *Swarm {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Swarm{
		T: t, Store: store.New(), check: Invariants, log: make(chan struct{}, 1),
		dice: newDice(seed, "test"), seed: seed, ctx: ctx, truth: true,
	}
	s.Fleet = newFleet(s)
	var fleet sync.WaitGroup
	fleet.Go(func() { s.Fleet.run(ctx) })
	t.Cleanup(func() {
		s.StopLeader()
		cancel()
		fleet.Wait()
	})
	s.term, s.terms = 1, 1
	s.Must(store.PutCluster(&cluster.Cluster{ID: s.NewID(), Spec: &swarm.Spec{}}))
	s.Must(store.CreateNetwork(&cluster.Network{ID: s.NewID(), Spec: &swarm.NetworkSpec{
		Annotations: swarm.Annotations{Name: "ingress"}, Ingress: true,
	}}))
	s.StartLeader()
	return s
}

// View returns the store as it is.
func (s *Swarm) View() store.View { return s.Store.View() }

// hold runs f while nothing is written.
func (s *Swarm) hold(f func()) {
	s.log <- struct{}{}
	f()
	<-s.log
}

// LogBytes returns how long all entries were together.
func (s *Swarm) LogBytes() (n int) {
	s.hold(func() { n = s.bytes })
	return n
}

// Check sets what is called after every log entry instead of Invariants.
func (s *Swarm) Check(check func(store.View) error) { s.hold(func() { s.check = check }) }

// Flaky sets how many of a hundred proposals end in an error: half of those are
// applied nevertheless, as when a leader's answer is lost.
func (s *Swarm) Flaky(percent int) { s.hold(func() { s.flaky = percent }) }

// leader returns the present term; -1 without a leader.
func (s *Swarm) leader() (term int) {
	s.hold(func() { term = s.term })
	return term
}

// propose writes an entry as the leader of a term, as it would go through the
// log: encoded, committed after a while, decoded, applied.
func (s *Swarm) propose(ctx context.Context, chance *dice, term int, changes ...store.Change) error {
	b, err := store.EncodeEntry(store.Entry{At: time.Now(), Changes: changes})
	if err != nil {
		return err
	}
	time.Sleep(time.Millisecond + chance.Random(2*time.Millisecond))
	select {
	case s.log <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.log }()
	if term != s.term {
		return cluster.ErrNotLeader
	}
	e, err := store.DecodeEntry(b)
	if err != nil {
		return err
	}
	thrown := chance.Intn(200)
	if thrown < s.flaky {
		return errEntryLost
	}
	s.index++
	s.bytes += len(b)
	if err := s.Store.Apply(s.index, e); err != nil {
		return err
	}
	if s.check != nil {
		if err := s.check(s.View()); err != nil {
			s.T.Errorf("entry %d: %v\n%s", s.index, err, describe(changes))
		}
	}
	if thrown >= 200-s.flaky {
		return errAnswerLost
	}
	return nil
}

// What becomes of flaky proposals; to a loop they are the same.
var (
	errEntryLost  = errors.New("the entry was lost")
	errAnswerLost = errors.New("the answer was lost")
)

func describe(changes []store.Change) (out string) {
	for _, c := range changes {
		out += fmt.Sprintf("  op %d kind %d %s", c.Op, c.Kind, c.ID)
		if c.Task != nil {
			out += fmt.Sprintf(" task slot %d node %s desired %s version %d", c.Task.Slot, c.Task.NodeID, c.Task.Desired, c.Task.SpecVersion)
		}
		if c.Status != nil {
			out += fmt.Sprintf(" status %s %s", c.Status.State, c.Status.Err)
		}
		out += "\n"
	}
	return out
}

// write is a write by anybody but the loops: they find the leader, wait for one
// if there is none, and read again when they were late.
func (s *Swarm) write(ctx context.Context, changes func(store.View) []store.Change) error {
	for {
		cs := changes(s.View())
		if len(cs) == 0 {
			return nil
		}
		err := s.propose(ctx, s.dice, max(s.leader(), 1), cs...)
		if errors.Is(err, errAnswerLost) {
			return nil // a user would look, and see that it was taken
		}
		if !errors.Is(err, cluster.ErrNotLeader) && !errors.Is(err, cluster.ErrStale) && !errors.Is(err, errEntryLost) {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Must writes changes that must be taken.
func (s *Swarm) Must(changes ...store.Change) {
	s.T.Helper()
	if err := s.write(s.ctx, func(store.View) []store.Change { return changes }); err != nil {
		s.T.Fatal(err)
	}
}

// StartLeader begins a term: all loops start with nothing but the store.
func (s *Swarm) StartLeader() {
	ctx, cancel := context.WithCancel(s.ctx)
	s.terms++
	term := s.terms
	s.depose = cancel
	s.hold(func() { s.term = term })
	chance := func(loop string) *dice { return newDice(s.seed, fmt.Sprint(loop, term)) }
	propose := func(loop string) func(context.Context, ...store.Change) error {
		own := chance("propose " + loop)
		return func(ctx context.Context, changes ...store.Change) error { return s.propose(ctx, own, term, changes...) }
	}
	log := slog.New(slog.NewTextHandler(testWriter{s.T}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for _, run := range []func(context.Context) error{
		(&allocate.Loop{Store: s.Store, Propose: propose("allocate"), Log: log}).Run,
		(&services.Loop{Store: s.Store, Propose: propose("services"), NewID: chance("services").NewID, Log: log}).Run,
		(&schedule.Loop{Store: s.Store, Propose: propose("schedule"), Log: log}).Run,
		(&rollout.Loop{Store: s.Store, Propose: propose("rollout"), NewID: chance("rollout").NewID, Log: log}).Run,
		(&reap.Loop{Store: s.Store, Propose: propose("reap"), Log: log}).Run,
	} {
		s.deposed.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, cluster.ErrNotLeader) {
				s.T.Errorf("a loop ended: %v", err)
			}
		})
	}
}

// StopLeader ends a term: what was observed and not logged is gone.
func (s *Swarm) StopLeader() {
	if s.depose == nil {
		return
	}
	s.hold(func() { s.term = -1 })
	s.depose()
	s.deposed.Wait()
	s.depose = nil
	s.Store.ForgetObserved()
}

// LoseLeader ends the term and begins the next one a second later, on a store
// that has been through a snapshot. Nodes are Unknown until they have found the
// new leader.
func (s *Swarm) LoseLeader() {
	s.T.Helper()
	s.StopLeader()
	time.Sleep(time.Second)
	var snapshot bytes.Buffer
	if err := s.Store.Snapshot(&snapshot); err != nil {
		s.T.Fatal(err)
	}
	if err := s.Store.Restore(&snapshot); err != nil {
		s.T.Fatal(err)
	}
	for _, n := range s.View().Nodes() {
		if !n.Down() {
			s.Store.ObserveNode(n.ID, cluster.NodeStatus{State: swarm.NodeStateUnknown, Since: time.Now()})
		}
	}
	s.StartLeader()
	s.Fleet.register()
}

// Until lets time pass until cond holds, and fails the test if it does not in d.
func (s *Swarm) Until(d time.Duration, what string, cond func(store.View) bool) {
	s.T.Helper()
	for end := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if cond(s.View()) {
			return
		}
		if time.Now().After(end) {
			s.T.Fatalf("not within %v: %s\n%s", d, what, s.Dump())
		}
	}
}

// Stays lets d pass and fails the test if cond stops to hold.
func (s *Swarm) Stays(d time.Duration, what string, cond func(store.View) bool) {
	s.T.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if !cond(s.View()) {
			s.T.Fatalf("no longer so: %s\n%s", what, s.Dump())
		}
	}
}

// Dump says what the swarm looks like.
func (s *Swarm) Dump() (out string) {
	v := s.View()
	for _, n := range v.Nodes() {
		out += fmt.Sprintf("node %s %s %s\n", n.Description.Hostname, n.Status.State, n.Spec.Availability)
	}
	for _, svc := range v.Services() {
		out += fmt.Sprintf("service %s version %d allocated %d %q", svc.Spec.Name, svc.SpecVersion, svc.Allocated, svc.AllocErr)
		if svc.Update != nil {
			out += fmt.Sprintf(" %s %q", svc.Update.State, svc.Update.Message)
		}
		out += "\n"
		for _, t := range v.TasksOf(svc.ID) {
			out += "  " + s.line(t) + "\n"
		}
	}
	return out
}

func (s *Swarm) line(t *cluster.Task) string {
	host := "-"
	if n := s.View().Node(t.NodeID); n != nil {
		host = n.Description.Hostname
	}
	return fmt.Sprintf("%d.%s v%d on %s: wanted %s, %s (serving %t) %q", t.Slot, t.ID[:6], t.SpecVersion, host,
		t.Desired, t.Status.State, t.Status.Serving, t.Status.Err)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
