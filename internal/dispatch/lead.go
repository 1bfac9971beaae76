package dispatch

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// Numbers of a node's life, from the reference.
const (
	defaultPeriod   = 5 * time.Second
	missedPeriods   = 3
	gracePeriods    = 6 // after a change of leader
	registerWindow  = 8 * time.Second
	maxRegistered   = 3
	holdTime        = 2 * time.Second
	probeAgain      = time.Second
	probeTimeout    = time.Second
	messageDown     = "heartbeat failure"
	messageLeft     = "left the swarm"
	messageLost     = "the host does not answer"
	planShare       = 4 // planning takes at most one part in planShare of the time
	firstIdle       = 250 * time.Microsecond
	longestIdle     = 10 * time.Millisecond
	tellPause       = 200 * time.Microsecond // before the next pass, for each node that was told something: sending costs too
	longestInterval = time.Hour
)

// lead is one manager's time as leader of the sessions. Its loop's goroutine
// owns the maps; others hand it functions.
type lead struct {
	srv    *Server
	writer *writer
	plan   *planner
	in     chan func()
	done   chan struct{} // closed when the leadership is over

	all      *Session // what every node is told of the swarm
	sessions map[string]*session
	lives    map[string]*life
	holds    map[string]*hold
	probes   chan probed
	again    bool // a pass is due
	notUntil time.Time
	idle     time.Duration // how long the next pass waits because the last ones told nobody anything
	due      time.Time     // nothing has to be looked after before
}

// life is what the leader thinks of one node.
type life struct {
	until      time.Time // taken for down unless heard of before
	heard      time.Time
	down       bool
	unknown    bool
	registered []time.Time
	probing    bool
	probeAfter time.Time
}

// hold keeps a task's stop from its node until the balancers let go of it.
type hold struct {
	pass     uint64
	until    time.Time
	networks []string
	released bool
}

type probed struct {
	node  string
	since time.Time
	alive bool
}

// Lead serves the sessions as leader until ctx ends or leadership is lost.
func (s *Server) Lead(ctx context.Context) error {
	l := &lead{
		srv: s, writer: newWriter(s.Store, s.Propose, s.Log), plan: newPlanner(s.codec.enc.Marshal),
		in: make(chan func()), done: make(chan struct{}), probes: make(chan probed),
		sessions: map[string]*session{}, lives: map[string]*life{}, holds: map[string]*hold{},
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.writer.run(ctx) })
	g.Go(func() error { return l.run(ctx, g) })
	return g.Wait()
}

func (l *lead) run(ctx context.Context, g *errgroup.Group) error {
	// A secret or config is there before a task may refer to it, and never changes.
	changed, stop := l.srv.Store.Watch(store.KindCluster, store.KindNode, store.KindService, store.KindTask, store.KindNetwork)
	defer stop()
	suspects, stopSuspects := l.srv.watchSuspects()
	defer stopSuspects()
	l.grace(time.Now())
	l.pass()
	l.srv.lead.Store(l)
	defer close(l.done)
	defer l.srv.lead.Store(nil)
	l.suspect(ctx, g, time.Now())
	for {
		wake := changed
		if l.again {
			wake = nil // nothing new
		}
		timer := time.NewTimer(l.wait())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-wake:
			l.again = true
		case <-suspects:
			l.suspect(ctx, g, time.Now())
		case f := <-l.in:
			f()
		case p := <-l.probes:
			l.probed(p)
		case <-timer.C:
		}
		timer.Stop()
		if now := time.Now(); !now.Before(l.due) {
			l.tick(ctx, g, now)
			l.due = l.next(now)
		}
		if l.again && !time.Now().Before(l.notUntil) {
			select {
			case <-changed: // the pass sees it
			default:
			}
			l.pass()
		}
	}
}

// do has f run by the loop.
func (l *lead) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case l.in <- func() { defer close(done); f() }:
	case <-l.done:
		return cluster.ErrNotLeader
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}

// grace begins a leadership: a node that is not known to be down has time to
// find its new leader; until it does nobody knows better than Unknown.
func (l *lead) grace(now time.Time) {
	for _, n := range l.srv.Store.View().Nodes() {
		if n.Status.State == swarm.NodeStateDown {
			l.lives[n.ID] = &life{down: true, until: now.Add(longestInterval)}
			continue
		}
		l.lives[n.ID] = &life{until: now.Add(gracePeriods * l.period()), unknown: true}
		l.srv.Store.ObserveNode(n.ID, cluster.NodeStatus{
			State: swarm.NodeStateUnknown, Message: "node moved to \"unknown\" state due to leadership change in cluster",
			Addr: n.Status.Addr, Since: now,
		})
	}
}

// period is the heartbeat period the swarm wants.
func (l *lead) period() time.Duration {
	if c := l.srv.Store.View().Cluster(); c != nil && c.Spec != nil && c.Spec.Dispatcher.HeartbeatPeriod > 0 {
		return c.Spec.Dispatcher.HeartbeatPeriod
	}
	return defaultPeriod
}

// pass works out anew what nodes are told and hands it to their sessions.
func (l *lead) pass() {
	start := time.Now()
	l.again = false
	v := l.srv.Store.View()
	if err := l.plan.plan(v, func(t *cluster.Task) bool { return l.hold(t, start) }); err != nil {
		l.srv.Log.Error("what nodes are to be told", "err", err)
	}
	l.forget(v)
	period, told := l.period(), 0
	l.know(v, period)
	for _, n := range v.Nodes() {
		if l.lives[n.ID] == nil {
			l.lives[n.ID] = &life{until: start.Add(gracePeriods * period)}
			l.soon(l.lives[n.ID].until)
		}
		if sess := l.sessions[n.ID]; sess != nil && l.tell(sess, n) {
			told++
		}
	}
	l.releaseHolds(start)
	l.pause(start, told)
}

// know notes what nodes are told of the swarm.
func (l *lead) know(v store.View, period time.Duration) {
	all := &Session{
		Period: period, Managers: managers(v), Leader: l.srv.Identity.Peer().NodeID, GossipKey: l.srv.gossipKey(v),
	}
	if l.all == nil || !reflect.DeepEqual(all, l.all) {
		l.all = all
	}
}

// tell hands a node what has changed for it since it was last told, and reports
// whether any of its items have. A new node hears nothing before its name is in the
// log: it has joined only when users can name it.
func (l *lead) tell(sess *session, n *cluster.Node) bool {
	if n.Description == nil {
		return false
	}
	if role := CertificateRole(n); sess.told != l.all || sess.role != role || sess.avail != n.Spec.Availability {
		info := *l.all
		info.Role, info.Availability = role, n.Spec.Availability
		sess.told, sess.role, sess.avail = l.all, role, n.Spec.Availability
		sess.put(func() { sess.info = &info })
	}
	items, complete := l.plan.next(n.ID, &sess.cur)
	if !complete && len(items) == 0 {
		return false
	}
	if !sess.add(items, complete, l.plan.pass) {
		sess.close(errSlow)
	}
	return true
}

// pause says when the next pass may be, given how many nodes this one told
// something. In a burst of writes that concern no node the passes become rarer;
// one that had something to tell to few is followed at once.
func (l *lead) pause(start time.Time, told int) {
	now := time.Now()
	if told > 0 || start.Sub(l.notUntil) > longestIdle {
		l.idle = 0
	} else {
		l.idle = min(longestIdle, max(firstIdle, 2*l.idle))
	}
	l.notUntil = now.Add(max(l.idle, (planShare-1)*now.Sub(start)) + time.Duration(told)*tellPause)
}

// forget drops what belongs to nodes and tasks that are gone.
func (l *lead) forget(v store.View) {
	for id, sess := range l.sessions {
		if v.Node(id) == nil {
			sess.close(cluster.Deniedf("node %s was removed from the swarm", id))
			delete(l.sessions, id)
		}
	}
	for id := range l.lives {
		if v.Node(id) == nil {
			delete(l.lives, id)
		}
	}
	for id := range l.holds {
		if t := v.Task(id); t == nil || t.Status.State != cluster.StateRunning || t.Desired <= cluster.StateRunning {
			delete(l.holds, id)
		}
	}
}

// hold says whether t must not yet be told to stop.
func (l *lead) hold(t *cluster.Task, now time.Time) bool {
	h := l.holds[t.ID]
	if h == nil {
		h = &hold{pass: l.plan.pass, until: now.Add(holdTime)}
		for _, a := range t.Networks {
			if a.Addr.IsValid() {
				h.networks = append(h.networks, a.NetworkID)
			}
		}
		h.released = len(h.networks) == 0
		l.holds[t.ID] = h
		l.soon(h.until)
	}
	return !h.released
}

// releaseHolds lets tasks be stopped that no node sends connections to any more,
// or that waited long enough.
func (l *lead) releaseHolds(now time.Time) {
	for _, h := range l.holds {
		if !h.released && (!now.Before(h.until) || l.letGo(h)) {
			h.released, l.again = true, true
		}
	}
}

func (l *lead) letGo(h *hold) bool {
	for id, sess := range l.sessions {
		in := slices.ContainsFunc(h.networks, func(n string) bool { return slices.Contains(l.plan.part[id], n) })
		if in && !sess.followed(h.pass) {
			return false
		}
	}
	return true
}

// CertificateRole returns the role a node's certificate should give it: a
// manager that is to be a worker stays one until it has left the Raft group.
func CertificateRole(n *cluster.Node) swarm.NodeRole {
	if n.Spec.Role == swarm.NodeRoleManager || n.Manager != nil {
		return swarm.NodeRoleManager
	}
	return swarm.NodeRoleWorker
}

// managers lists the members of the Raft group.
func managers(v store.View) []Manager {
	var out []Manager
	for _, n := range v.Nodes() {
		if n.Manager != nil {
			out = append(out, Manager{NodeID: n.ID, Addr: n.Manager.Addr})
		}
	}
	return out
}

// register takes a node's session in, in place of an earlier one.
func (l *lead) register(ctx context.Context, sess *session, hello *Hello) error {
	var err error
	if derr := l.do(ctx, func() { err = l.admit(sess, hello, time.Now()) }); derr != nil {
		return derr
	}
	return err
}

func (l *lead) admit(sess *session, hello *Hello, now time.Time) error {
	n := l.srv.Store.View().Node(sess.node)
	if n == nil {
		return cluster.NotFoundf("node %s not found", sess.node)
	}
	li := l.lives[sess.node]
	if li == nil {
		li = &life{}
		l.lives[sess.node] = li
	}
	li.registered = slices.DeleteFunc(li.registered, func(t time.Time) bool { return now.Sub(t) >= registerWindow })
	if len(li.registered) >= maxRegistered {
		return cluster.Unavailablef("attempted registration rate limit exceeded: node %s registered %d times within %v",
			sess.node, len(li.registered), registerWindow)
	}
	li.registered = append(li.registered, now)
	l.soon(now.Add(missedPeriods * l.period()))
	if old := l.sessions[sess.node]; old != nil {
		old.close(cluster.Conflictf("node %s opened another session", sess.node))
	}
	l.sessions[sess.node] = sess
	l.alive(sess.node)
	l.srv.Store.ObserveNode(sess.node, cluster.NodeStatus{})
	l.writer.node(sess.node, registration(sess, hello, now))
	l.tell(sess, n) // at once what the last pass found; the others hear of it in the next
	l.again = true
	return nil
}

// registration is the change that a node's hello makes to its record.
func registration(sess *session, hello *Hello, now time.Time) nodeEdit {
	return func(n *cluster.Node) bool {
		old := *n
		addr := hello.Addr
		if !addr.IsValid() {
			addr = parseHost(sess.addr)
		}
		n.Role, n.Description, n.DataAddr = sess.peer.Role, hello.Description, hello.DataAddr
		if !n.DataAddr.IsValid() {
			n.DataAddr = addr
		}
		if n.Status.State != swarm.NodeStateReady || n.Status.Addr != addr.String() {
			n.Status = cluster.NodeStatus{State: swarm.NodeStateReady, Addr: addr.String(), Since: now}
		}
		return n.Role != old.Role || n.DataAddr != old.DataAddr || n.Status != old.Status ||
			!reflect.DeepEqual(n.Description, old.Description)
	}
}

func parseHost(hostport string) netip.Addr {
	ap, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// unregister takes a session out that has ended. The node has its periods to
// come back.
func (l *lead) unregister(sess *session) {
	_ = l.do(context.Background(), func() { // an error: the leadership is over, and all with it
		if l.sessions[sess.node] == sess {
			delete(l.sessions, sess.node)
			l.releaseHolds(time.Now())
		}
	})
}

// alive notes a sign of life.
func (l *lead) alive(node string) {
	if li := l.lives[node]; li != nil && l.sessions[node] != nil {
		now := time.Now()
		li.heard, li.until = now, now.Add(missedPeriods*l.period())
		li.down, li.unknown = false, false
	}
}

// soon has something looked after at t, at the latest.
func (l *lead) soon(t time.Time) {
	if t.Before(l.due) {
		l.due = t
	}
}

// wait returns how long the loop may sleep.
func (l *lead) wait() time.Duration {
	until := l.due
	if l.again && l.notUntil.Before(until) {
		until = l.notUntil
	}
	return max(0, time.Until(until))
}

// next returns when something has to be looked after next. A sign of life moves
// that away, which need not be noticed at once; what brings it nearer calls soon.
func (l *lead) next(now time.Time) time.Time {
	next := now.Add(longestInterval)
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, li := range l.lives {
		if li.down {
			continue
		}
		earlier(li.until)
		if !li.probeAfter.IsZero() && !li.probing {
			earlier(li.probeAfter)
		}
	}
	for _, h := range l.holds {
		if !h.released {
			earlier(h.until)
		}
	}
	return next
}
