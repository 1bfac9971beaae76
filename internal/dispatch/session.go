package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
	"github.com/skep-dev/skep/internal/store"
)

const peerKind = cluster.ItemPeer

// Bounds of a session.
const (
	helloTimeout = 10 * time.Second
	inFlight     = 2       // assignment versions sent and not yet acknowledged
	maxBacklog   = 1 << 18 // items that wait for a slow node before it is cut off
	maxText      = 4 << 10
)

// session is the leader's end of a node's session. The leader's loop puts
// messages in, the session's sender takes them out; mu guards what they share.
type session struct {
	node string
	peer pki.Peer
	addr string // where the node connects from

	// The leader's loop alone uses these.
	cur   cursor
	told  *Session // what was last put in, but for role and availability
	role  swarm.NodeRole
	avail swarm.NodeAvailability

	wake chan struct{}
	end  chan error // why the leader ends it; capacity 1

	mu      sync.Mutex
	info    *Session // to be sent
	beat    uint64
	opens   []*open
	batch   *batch
	marks   []mark // sent, not acknowledged
	version uint64
}

// batch is items that wait to be sent; first is the planner's pass that its
// oldest is of.
type batch struct {
	complete bool
	items    []*wireItem
	first    uint64
}

// mark remembers what a version that was sent holds.
type mark struct{ version, first uint64 }

func newSession(peer pki.Peer, addr string) *session {
	return &session{
		node: peer.NodeID, peer: peer, addr: addr,
		wake: make(chan struct{}, 1), end: make(chan error, 1),
	}
}

// put lets f change what is to be sent and wakes the sender.
func (s *session) put(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the session; the node is told why.
func (s *session) close(err error) {
	select {
	case s.end <- err:
	default:
	}
}

// add puts items in and reports whether the node keeps up.
func (s *session) add(items []*wireItem, complete bool, pass uint64) bool {
	ok := true
	s.put(func() {
		if s.batch == nil || complete {
			first := pass
			if s.batch != nil {
				first = s.batch.first
			}
			s.batch = &batch{complete: complete, first: first}
		}
		s.batch.items = append(s.batch.items, items...)
		if len(s.batch.items) > maxBacklog && !s.batch.complete {
			s.batch.items = latest(s.batch.items)
			ok = len(s.batch.items) <= maxBacklog
		}
	})
	return ok
}

// followed reports whether the node follows all that was put in up to a pass.
func (s *session) followed(pass uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.batch != nil && s.batch.first <= pass {
		return false
	}
	return !slices.ContainsFunc(s.marks, func(m mark) bool { return m.first <= pass })
}

// acked notes that the node follows a version.
func (s *session) acked(version uint64) {
	s.put(func() {
		s.marks = slices.DeleteFunc(s.marks, func(m mark) bool { return m.version <= version })
	})
}

// take returns the messages that are to be sent now.
func (s *session) take() []*down {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &down{Session: s.info, Beat: s.beat}
	s.info, s.beat = nil, 0
	var out []*down
	if d.Session != nil || d.Beat != 0 {
		out = append(out, d)
	}
	for _, o := range s.opens {
		out = append(out, &down{Open: o})
	}
	s.opens = nil
	if s.batch != nil && len(s.marks) < inFlight {
		out = append(out, s.assignments()...)
	}
	return out
}

// assignments makes the batch a new version, in messages of bounded length.
func (s *session) assignments() []*down {
	b := s.batch
	s.batch = nil
	base := s.version
	if b.complete {
		base = 0
	}
	s.version++
	s.marks = append(s.marks, mark{version: s.version, first: b.first})
	var out []*down
	items := latest(b.items)
	if b.complete {
		items = slices.DeleteFunc(items, func(it *wireItem) bool { return it.Body == nil })
	}
	for {
		n, size := 0, 0
		for n < len(items) && (n == 0 || size < chunkLen) {
			size += len(items[n].Body) + len(items[n].ID) + 8
			n++
		}
		out = append(out, &down{Assign: &assignment{
			Base: base, Version: s.version, Items: items[:n], More: n < len(items),
		}})
		if items = items[n:]; len(items) == 0 {
			return out
		}
	}
}

// serveSession is the handler of a node's session.
func (s *Server) serveSession(stream grpc.ServerStream) error {
	peer, addr, err := s.caller(stream.Context())
	if err != nil {
		return err
	}
	l, leader, err := s.leadingSoon(stream.Context())
	if err != nil {
		return err
	}
	if l == nil {
		return stream.SendMsg(&down{Redirect: leader})
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	// The receiver outlives this handler by as long as gRPC takes to end the
	// stream: only the handler's return makes RecvMsg fail.
	ups := make(chan *up)
	recvErr := make(chan error, 1)
	go func() { recvErr <- receive(ctx, stream, ups) }()

	hello, err := firstHello(ctx, ups, recvErr)
	if err != nil {
		return err
	}
	sess := newSession(peer, addr)
	if err := l.register(ctx, sess, hello); err != nil {
		return err
	}
	defer l.unregister(sess)
	sent := make(chan error, 1)
	go func() { sent <- sess.send(ctx, stream) }()
	defer func() {
		cancel()
		<-sent
	}()
	for {
		select {
		case u := <-ups:
			if err := l.heard(ctx, sess, u); err != nil {
				return err
			}
		case err := <-recvErr:
			return err
		case err := <-sent:
			sent <- err
			return err
		case err := <-sess.end:
			return err
		case <-l.done:
			return cluster.ErrNotLeader
		}
	}
}

// receive hands on the node's messages until the stream ends.
func receive(ctx context.Context, stream grpc.ServerStream, ups chan<- *up) error {
	for {
		u := new(up)
		if err := stream.RecvMsg(u); err != nil {
			return err
		}
		select {
		case ups <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func firstHello(ctx context.Context, ups <-chan *up, recvErr <-chan error) (*Hello, error) {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case u := <-ups:
		if u.Hello == nil || u.Hello.Description == nil {
			return nil, cluster.Invalidf("a session begins with the node's description")
		}
		return u.Hello, nil
	case err := <-recvErr:
		return nil, err
	case <-timer.C:
		return nil, fmt.Errorf("no hello within %v: %w", helloTimeout, context.DeadlineExceeded)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send sends what is put into the session until ctx ends.
func (s *session) send(ctx context.Context, stream grpc.ServerStream) error {
	for {
		for _, d := range s.take() {
			if err := stream.SendMsg(d); err != nil {
				return err
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// heard deals with a message of a registered node.
func (l *lead) heard(ctx context.Context, sess *session, u *up) error {
	if u.Ack != 0 {
		sess.acked(u.Ack)
	}
	if len(u.Statuses) > 0 {
		if err := l.statuses(sess.node, u.Statuses); err != nil {
			return err
		}
	}
	if u.Beat != 0 {
		sess.put(func() { sess.beat = u.Beat })
	}
	return l.do(ctx, func() {
		l.alive(sess.node)
		if u.Ack != 0 {
			l.releaseHolds(time.Now())
		}
	})
}

// statuses takes what a node observed of its tasks: RUNNING and the terminal
// states to the log, the steps between to the leader's memory.
func (l *lead) statuses(node string, in []TaskStatus) error {
	v := l.srv.Store.View()
	var soft []store.Observation
	for _, ts := range in {
		t := v.Task(ts.ID)
		if t == nil {
			continue // removed meanwhile
		}
		if t.NodeID != node {
			return cluster.Deniedf("task %s is not of node %s", ts.ID, node)
		}
		st := ts.Status
		if err := checkStatus(&st); err != nil {
			return err
		}
		if st.State < t.Status.State || sameStatus(st, t.Status) {
			continue
		}
		if st.State >= cluster.StateRunning {
			l.writer.status(ts.ID, st)
		} else {
			soft = append(soft, store.Observation{TaskID: ts.ID, Status: st})
		}
	}
	if len(soft) > 0 {
		l.srv.Store.ObserveAll(soft)
	}
	return nil
}

// checkStatus refuses states that are not a node's to report and bounds texts.
func checkStatus(st *cluster.Status) error {
	if st.State.API() == "" || st.State < cluster.StateAccepted || st.State > cluster.StateRejected {
		return cluster.Invalidf("state %d is not a node's to report", st.State)
	}
	st.Message, st.Err = clip(st.Message), clip(st.Err)
	if len(st.ContainerID) > 128 || len(st.Ports) > 1<<12 {
		return cluster.Invalidf("the status is too long")
	}
	st.Serving = st.Serving && st.State == cluster.StateRunning
	return nil
}

// clip returns at most maxText bytes of s, as valid UTF-8.
func clip(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

// sameStatus compares all but the time.
func sameStatus(a, b cluster.Status) bool {
	return a.State == b.State && a.Message == b.Message && a.Err == b.Err &&
		a.ContainerID == b.ContainerID && a.PID == b.PID && a.ExitCode == b.ExitCode &&
		a.Serving == b.Serving && slices.Equal(a.Ports, b.Ports)
}

var errSlow = errors.New("the node does not keep up with its assignments")
