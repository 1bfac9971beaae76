package httpapi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

// statsInterval is how far apart the samples of a container's statistics are.
const statsInterval = time.Second

// nextSample waits one interval and takes a sample that carries the one before
// it, from which clients compute rates.
func (s *Server) nextSample(r *http.Request, id string, last container.StatsResponse) (container.StatsResponse, error) {
	select {
	case <-time.After(statsInterval):
	case <-r.Context().Done():
		return container.StatsResponse{}, r.Context().Err()
	}
	next, err := s.Containers.Stats(r.Context(), id)
	if err != nil {
		return next, err
	}
	next.PreRead, next.PreCPUStats = last.Read, last.CPUStats
	return next, nil
}

// stdType says which of the two output streams a frame belongs to.
const (
	frameStdout = byte(stdcopy.Stdout)
	frameStderr = byte(stdcopy.Stderr)
)

// frame writes p as one frame of Docker's multiplexed stream: a type, three
// zeros, the length in four bytes, then the bytes.
func frame(w io.Writer, typ byte, p []byte) error {
	buf := make([]byte, 8+len(p))
	buf[0] = typ
	n := len(p)
	buf[4], buf[5], buf[6], buf[7] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	copy(buf[8:], p)
	_, err := w.Write(buf)
	return err
}

// framed is an output stream of a multiplexed connection.
type framed struct {
	w   io.Writer
	typ byte
}

func (f framed) Write(p []byte) (int, error) {
	if err := frame(f.w, f.typ, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// containerLogs streams a container's log, multiplexed unless it has a terminal.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	opts, err := logsOptions(q)
	if err != nil {
		return err
	}
	stamps, details := boolParam(q, "timestamps"), boolParam(q, "details")
	var out flushed
	var tty bool
	head := func(hasTTY bool) {
		tty = hasTTY
		out = begin(w, streamType(r, tty))
	}
	err = s.Containers.Logs(r.Context(), r.PathValue("id"), opts, head, func(e engine.LogEntry) error {
		var before string
		if details {
			before = attrsText(e.Attrs) + " " // the space is there without any too, as in Docker
		}
		return writeLog(out, e, tty, stamps, before)
	})
	return endLogs(r, out, tty, err)
}

func logsOptions(q url.Values) (engine.LogsOptions, error) {
	opts := engine.LogsOptions{
		Stdout: boolParam(q, "stdout"), Stderr: boolParam(q, "stderr"),
		Follow: boolParam(q, "follow"), Tail: tailParam(q.Get("tail")),
	}
	if !opts.Stdout && !opts.Stderr {
		return opts, cluster.Invalidf("Bad parameters: you must choose at least one stream")
	}
	var err error
	if opts.Since, err = timeParam(q, "since"); err != nil {
		return opts, err
	}
	opts.Until, err = timeParam(q, "until")
	return opts, err
}

// tailParam reads tail: a number of lines; anything else means all of them.
func tailParam(raw string) int {
	var n int
	if _, err := fmt.Sscanf(raw, "%d", &n); err != nil || n < 0 || strings.TrimLeft(raw, "0123456789") != "" {
		return -1
	}
	return n
}

// attrsText is what --details shows of a line's attributes, in the form that the
// docker command reads: sorted and escaped.
func attrsText(attrs map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(attrs[k]))
	}
	return strings.Join(pairs, ",")
}

// writeLog writes one log entry as logs shows it: the time if asked for, then the
// details with the space after them, then the line.
func writeLog(w io.Writer, e engine.LogEntry, tty, stamps bool, details string) error {
	var buf bytes.Buffer
	if stamps {
		buf.WriteString(e.Time.UTC().Format("2006-01-02T15:04:05.000000000Z07:00"))
		buf.WriteByte(' ')
	}
	buf.WriteString(details)
	buf.Write(e.Line)
	if tty {
		_, err := w.Write(buf.Bytes())
		return err
	}
	typ := frameStdout
	if e.Stream == "stderr" {
		typ = frameStderr
	}
	return frame(w, typ, buf.Bytes())
}

// streamType is the media type of a container's output for the client's version.
func streamType(r *http.Request, tty bool) string {
	if tty || before(r, "1.42") {
		return types.MediaTypeRawStream
	}
	return types.MediaTypeMultiplexedStream
}

// hijack takes the connection from HTTP, answers 101 when the client asked for
// an upgrade and 200 when it did not (older ones), and returns its two ends.
func hijack(w http.ResponseWriter, r *http.Request, contentType string) (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("connection cannot be taken over: %w", err)
	}
	conn.SetDeadline(time.Time{})
	answer := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if r.Header.Get("Upgrade") != "" {
		answer = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType +
			"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	if _, err := io.WriteString(conn, answer); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, rw, nil
}

// clientInput is what the client types: the hijacked connection's read side.
// Bytes that arrived together with the request are read first.
type clientInput struct {
	r    io.Reader
	conn net.Conn
}

func (c *clientInput) Read(p []byte) (int, error) { return c.r.Read(p) }

// Close ends reading and leaves the writing side open for the last output.
func (c *clientInput) Close() error {
	if cr, ok := c.conn.(interface{ CloseRead() error }); ok {
		return cr.CloseRead()
	}
	return c.conn.SetReadDeadline(time.Now())
}

// lazyConn hijacks at the moment the room says that its streams are connected,
// so that an error before it is still an ordinary answer. Until then reads wait
// and writes have nowhere to go.
type lazyConn struct {
	w           http.ResponseWriter
	r           *http.Request
	contentType string
	ready       chan struct{}
	conn        net.Conn
	in          *clientInput
	err         error
}

func newLazyConn(w http.ResponseWriter, r *http.Request, contentType string) *lazyConn {
	return &lazyConn{w: w, r: r, contentType: contentType, ready: make(chan struct{})}
}

// open hijacks the connection; it is the Ready callback of attach and exec.
func (l *lazyConn) open() {
	defer close(l.ready)
	conn, rw, err := hijack(l.w, l.r, l.contentType)
	if err != nil {
		l.err = err
		return
	}
	// Only what net/http has read already is taken from its reader: at the end
	// of the input that one would cancel the request, which goes on.
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	l.conn, l.in = conn, &clientInput{r: io.MultiReader(bytes.NewReader(early), conn), conn: conn}
}

// opened reports whether open was called.
func (l *lazyConn) opened() bool {
	select {
	case <-l.ready:
		return true
	default:
		return false
	}
}

func (l *lazyConn) Read(p []byte) (int, error) {
	<-l.ready
	if l.err != nil {
		return 0, l.err
	}
	return l.in.Read(p)
}

func (l *lazyConn) Write(p []byte) (int, error) {
	<-l.ready
	if l.err != nil {
		return 0, l.err
	}
	return l.conn.Write(p)
}

// Close ends the input side.
func (l *lazyConn) Close() error {
	if !l.opened() || l.in == nil {
		return nil
	}
	return l.in.Close()
}

// finish closes the connection after the last byte, or returns the error that
// came before it was taken over.
func (l *lazyConn) finish(err error) error {
	if !l.opened() {
		return err
	}
	if l.err != nil {
		return l.err
	}
	if cw, ok := l.conn.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
	}
	return l.conn.Close()
}

// containerAttach connects the client to a container's streams.
func (s *Server) containerAttach(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	id := r.PathValue("id")
	c, err := s.Containers.Inspect(r.Context(), id, false)
	if err != nil {
		return err
	}
	tty := c.Config != nil && c.Config.Tty
	conn := newLazyConn(w, r, streamType(r, tty))
	opts := engine.AttachOptions{
		Stream: boolParam(q, "stream"), Logs: boolParam(q, "logs"),
		DetachKeys: q.Get("detachKeys"), Ready: conn.open,
		Streams: streamsOf(conn, tty, boolParam(q, "stdin"), boolParam(q, "stdout"), boolParam(q, "stderr")),
	}
	err = s.Containers.Attach(r.Context(), id, opts)
	if err != nil && conn.opened() && !errors.Is(err, r.Context().Err()) {
		s.Log.Debug("attach ended", "container", id, "err", err)
	}
	return conn.finish(err)
}

// streamsOf gives a room its ends of a connection.
func streamsOf(conn *lazyConn, tty, stdin, stdout, stderr bool) engine.Streams {
	var st engine.Streams
	if stdin {
		st.Stdin = conn
	}
	switch {
	case tty:
		if stdout || stderr {
			st.Stdout = conn
		}
	default:
		if stdout {
			st.Stdout = framed{conn, frameStdout}
		}
		if stderr {
			st.Stderr = framed{conn, frameStderr}
		}
	}
	return st
}
