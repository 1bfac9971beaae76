package dispatch

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/skep-dev/skep/internal/cluster"
)

// A manager that wants a node to send it something at length (the logs of a
// task) asks for it in the node's session; the node then opens a stream of its
// own, so that no bulk holds up the session. Another manager than the leader
// asks the leader to do so and to pass the frames on.

// openTimeout is how long a node has to open a stream it was asked for.
const openTimeout = 5 * time.Second

// waiter waits for a node to open a stream.
type waiter struct {
	node string
	got  chan *reverse // capacity 1
}

// reverse is a stream that a node opened because it was asked to.
type reverse struct {
	stream grpc.ServerStream
	first  *frame
	over   chan struct{} // closed by its reader
}

// Frames is what a node sends back in answer to Open.
type Frames interface {
	// Next returns the next piece of data, io.EOF at the end.
	Next() ([]byte, error)
	// Close tells the node to stop. It must be called.
	Close()
}

// Open asks a node to answer req, which its handler of that kind understands,
// and returns what it sends. A node without a session is errdefs.ErrUnavailable.
func (s *Server) Open(ctx context.Context, nodeID, kind string, req any) (Frames, error) {
	body, err := s.codec.enc.Marshal(req)
	if err != nil {
		return nil, err
	}
	l, leader, err := s.leading()
	if err != nil {
		return nil, err
	}
	if l != nil {
		return s.openHere(ctx, l, nodeID, kind, body)
	}
	return s.openThrough(ctx, leader, &watchRequest{NodeID: nodeID, Kind: kind, Body: body})
}

// openHere asks the node itself, whose session is here.
func (s *Server) openHere(ctx context.Context, l *lead, nodeID, kind string, body []byte) (Frames, error) {
	id := cluster.NewID()
	w := &waiter{node: nodeID, got: make(chan *reverse, 1)}
	s.mu.Lock()
	s.waiting[id] = w
	s.mu.Unlock()
	taken := false
	defer func() {
		s.mu.Lock()
		_, still := s.waiting[id]
		delete(s.waiting, id)
		s.mu.Unlock()
		if !still && !taken { // it came too late
			close((<-w.got).over)
		}
	}()
	asked := false
	err := l.do(ctx, func() {
		if sess := l.sessions[nodeID]; sess != nil {
			sess.put(func() { sess.opens = append(sess.opens, &open{Stream: id, Kind: kind, Body: body}) })
			asked = true
		}
	})
	if err != nil {
		return nil, err
	}
	if !asked {
		return nil, cluster.Unavailablef("node %s is not available", nodeID)
	}
	timer := time.NewTimer(openTimeout)
	defer timer.Stop()
	select {
	case r := <-w.got:
		taken = true
		h := &hereFrames{r: r}
		// Closing is what ends a read that waits, when the caller goes away.
		h.stop = context.AfterFunc(ctx, h.end)
		return h, nil
	case <-timer.C:
		return nil, cluster.Unavailablef("node %s does not answer", nodeID)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.done:
		return nil, cluster.ErrNotLeader
	}
}

// serveReverse is the handler of a stream that a node opens.
func (s *Server) serveReverse(stream grpc.ServerStream) error {
	who, _, err := s.caller(stream.Context())
	if err != nil {
		return err
	}
	f := new(frame)
	if err := stream.RecvMsg(f); err != nil {
		return err
	}
	s.mu.Lock()
	w := s.waiting[f.Stream]
	if w != nil && w.node == who.NodeID {
		delete(s.waiting, f.Stream)
	}
	s.mu.Unlock()
	if w == nil || w.node != who.NodeID {
		return cluster.NotFoundf("nobody waits for stream %q", clip(f.Stream))
	}
	r := &reverse{stream: stream, first: f, over: make(chan struct{})}
	w.got <- r
	select {
	case <-r.over:
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// hereFrames reads a node's stream.
type hereFrames struct {
	r    *reverse
	stop func() bool
	once sync.Once
}

func (h *hereFrames) end() { h.once.Do(func() { close(h.r.over) }) }

// Next implements Frames.
func (h *hereFrames) Next() ([]byte, error) { return nextData(h.recv) }

func (h *hereFrames) recv(f *frame) error {
	if first := h.r.first; first != nil {
		h.r.first, *f = nil, *first
		return nil
	}
	return h.r.stream.RecvMsg(f)
}

// nextData returns the data of the next frame that has any.
func nextData(recv func(*frame) error) ([]byte, error) {
	for {
		f := new(frame)
		if err := recv(f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
			return nil, fromGRPC(err)
		}
		switch {
		case f.Err != nil:
			return nil, fromWire(f.Err)
		case f.Data != nil:
			return f.Data, nil
		}
	}
}

// Close implements Frames.
func (h *hereFrames) Close() {
	h.stop()
	h.end()
}

// openThrough asks the leader to ask the node.
func (s *Server) openThrough(ctx context.Context, leader string, req *watchRequest) (Frames, error) {
	cc, err := s.peers.to(leader)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method("Watch"))
	if err == nil {
		err = stream.SendMsg(req)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil {
		cancel()
		return nil, fromGRPC(err)
	}
	return &thereFrames{stream: stream, cancel: cancel}, nil
}

// thereFrames reads a node's stream through the leader.
type thereFrames struct {
	stream grpc.ClientStream
	cancel context.CancelFunc
}

// Next implements Frames.
func (t *thereFrames) Next() ([]byte, error) {
	return nextData(func(f *frame) error { return t.stream.RecvMsg(f) })
}

// Close implements Frames.
func (t *thereFrames) Close() { t.cancel() }

// serveWatch passes a node's stream on to another manager.
func (s *Server) serveWatch(stream grpc.ServerStream) error {
	if _, err := s.manager(stream.Context()); err != nil {
		return err
	}
	req := new(watchRequest)
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	l := s.lead.Load()
	if l == nil {
		return ErrNoLeader
	}
	frames, err := s.openHere(stream.Context(), l, req.NodeID, req.Kind, req.Body)
	if err != nil {
		return err
	}
	defer frames.Close()
	for {
		b, err := frames.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return stream.SendMsg(&frame{Err: toWire(err)})
		}
		if err := stream.SendMsg(&frame{Data: b}); err != nil {
			return err
		}
	}
}
