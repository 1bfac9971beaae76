package raftlog

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// transport is Raft's network transport, and notes what each heartbeat says of
// the member that answered it.
type transport struct {
	*raft.NetworkTransport

	mu   sync.Mutex // guards seen
	seen map[raft.ServerID]contact
}

// contact is the last answer of a member.
type contact struct {
	at   time.Time
	last uint64 // the last entry in its log
}

func newTransport(cfg Config, logger hclog.Logger) *transport {
	return &transport{
		seen: map[raft.ServerID]contact{},
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:  &stream{Listener: cfg.Listener, cfg: cfg, conns: map[*tracked]struct{}{}},
			MaxPool: 3,
			Timeout: max(4*cfg.Tick, 200*time.Millisecond),
			Logger:  logger,
		}),
	}
}

// AppendEntries implements raft.Transport; all heartbeats pass here.
func (t *transport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, addr, args, resp)
	if err == nil {
		t.mu.Lock()
		t.seen[id] = contact{time.Now(), resp.LastLog}
		t.mu.Unlock()
	}
	return err
}

func (t *transport) contact(id raft.ServerID) contact {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[id]
}

func (t *transport) forget(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.seen, id)
}

// stream is a raft.StreamLayer on the daemon's listener and dialer. It closes
// every connection it made when it is closed, so that nothing outlives the Log.
type stream struct {
	net.Listener
	cfg Config

	mu     sync.Mutex // guards the fields below
	conns  map[*tracked]struct{}
	closed bool
}

type tracked struct {
	net.Conn
	stream *stream
}

func (t *tracked) Close() error {
	t.stream.mu.Lock()
	delete(t.stream.conns, t)
	t.stream.mu.Unlock()
	return t.Conn.Close()
}

func (s *stream) track(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	t := &tracked{c, s}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[t] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		c.Close()
		return nil, net.ErrClosed
	}
	return t, nil
}

func (s *stream) Accept() (net.Conn, error) { return s.track(s.Listener.Accept()) }

func (s *stream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.track(s.cfg.Dial(ctx, string(addr)))
}

func (s *stream) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns, s.closed = map[*tracked]struct{}{}, true
	s.mu.Unlock()
	err := s.Listener.Close()
	for t := range conns {
		t.Conn.Close()
	}
	return err
}

// Addr returns the address the other members know.
func (s *stream) Addr() net.Addr { return advertised(s.cfg.Addr) }

type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// hclogTo passes the library's lines on to log: its warnings and errors are
// ours, the rest is for debugging.
func hclogTo(log *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Level: hclog.Info, Output: lines{log}, DisableTime: true, JSONFormat: false,
	})
}

type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		level := slog.LevelDebug
		text := strings.TrimSpace(line)
		for prefix, lv := range map[string]slog.Level{"[WARN]": slog.LevelDebug, "[ERROR]": slog.LevelWarn} {
			if rest, ok := strings.CutPrefix(text, prefix); ok {
				level, text = lv, strings.TrimSpace(rest)
			}
		}
		l.log.Log(context.Background(), level, "raft: "+text)
	}
	return len(b), nil
}
