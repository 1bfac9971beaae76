package stdio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// What a client says first on the attach socket, and what it is answered.
const (
	wantOutput = 'a' // frames of everything written from now on
	wantWakes  = 'w' // a byte after something was written, never more than needed
	ready      = 'r'
)

// maxLine is where a longer line is cut into parts, as Docker does.
const maxLine = 16 << 10

// slowest is how long an attached client may leave its end full before it is cut
// off. Until then the container waits for it, as it does for a terminal.
const slowest = 60 * time.Second

// Output carries one container's output to its log and its clients, in the shim.
type Output struct {
	listener net.Listener
	copies   sync.WaitGroup // the streams
	served   sync.WaitGroup // the listener and its connections
	done     chan struct{}

	mu      sync.Mutex // guards what follows and orders the log
	log     *Log
	clients map[net.Conn]byte // what each wants
	ended   bool
}

// OpenOutput opens the log and the socket. Close or Wait ends it.
func OpenOutput(s Spec) (*Output, error) {
	o := &Output{clients: map[net.Conn]byte{}, done: make(chan struct{})}
	if s.Log != "" {
		l, err := OpenLog(s)
		if err != nil {
			return nil, fmt.Errorf("container log: %w", err)
		}
		o.log = l
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, o.closeLog())
	}
	ln, err := net.Listen("unix", s.Socket)
	if err != nil {
		return nil, errors.Join(err, o.closeLog())
	}
	o.listener = ln
	o.served.Go(o.accept)
	return o, nil
}

func (o *Output) closeLog() error {
	if o.log == nil {
		return nil
	}
	return o.log.Close()
}

// Run copies the streams until they end, and then ends the output. A nil stream
// is none. It does not wait.
func (o *Output) Run(stdout, stderr io.ReadCloser) {
	for s, r := range map[Stream]io.ReadCloser{Stdout: stdout, Stderr: stderr} {
		if r != nil {
			o.copies.Go(func() { o.copy(s, r) })
		}
	}
	go func() {
		o.copies.Wait()
		o.Close()
		close(o.done)
	}()
}

// Wait waits until everything was written, but no longer than limit: something
// else may hold the container's output open.
func (o *Output) Wait(limit time.Duration) {
	select {
	case <-o.done:
	case <-time.After(limit):
		o.Close()
	}
}

// Close ends the output: the log is closed and clients are cut off.
func (o *Output) Close() {
	o.mu.Lock()
	if o.ended {
		o.mu.Unlock()
		return
	}
	o.ended = true
	_ = o.closeLog() // written already; there is nobody to tell
	for c := range o.clients {
		_ = c.Close()
	}
	o.mu.Unlock()
	_ = o.listener.Close() // removes the socket too
	o.served.Wait()
}

// copy reads one stream to its end.
func (o *Output) copy(s Stream, r io.ReadCloser) {
	defer r.Close()
	buf := make([]byte, 8<<10)
	var part []byte // what has been read of a line that has not ended
	for {
		n, err := r.Read(buf)
		if n > 0 {
			part = o.write(s, buf[:n], part)
		}
		if err != nil {
			o.mu.Lock()
			o.append(time.Now(), s, part)
			o.flush()
			o.mu.Unlock()
			return
		}
	}
}

// write hands data to the clients and the log, and returns the unfinished line.
func (o *Output) write(s Stream, data, part []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now() // later than any attach that missed it
	o.send(s, data)
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			break
		}
		if len(part) > 0 {
			o.append(now, s, append(part, data[:i+1]...))
			part = part[:0]
		} else {
			o.append(now, s, data[:i+1])
		}
		data = data[i+1:]
	}
	part = append(part, data...)
	for len(part) >= maxLine {
		o.append(now, s, part[:maxLine])
		part = append(part[:0], part[maxLine:]...)
	}
	if cap(part) > maxLine && len(part) == 0 {
		part = nil // do not keep a large line's memory
	}
	o.flush()
	o.wake()
	return part
}

func (o *Output) append(t time.Time, s Stream, line []byte) {
	if o.log == nil || o.ended || len(line) == 0 {
		return
	}
	for len(line) > maxLine {
		_ = o.log.Append(t, s, line[:maxLine])
		line = line[maxLine:]
	}
	// A full disk must not stop the container; the line is lost.
	_ = o.log.Append(t, s, line)
}

func (o *Output) flush() {
	if o.log != nil && !o.ended {
		_ = o.log.Flush()
	}
}

// send writes a frame to each client that wants output: stream, length, data.
func (o *Output) send(s Stream, data []byte) {
	var frame []byte
	for c, want := range o.clients {
		if want != wantOutput {
			continue
		}
		if frame == nil {
			frame = make([]byte, 5, 5+len(data))
			frame[0] = byte(s)
			binary.BigEndian.PutUint32(frame[1:], uint32(len(data)))
			frame = append(frame, data...)
		}
		_ = c.SetWriteDeadline(time.Now().Add(slowest))
		if _, err := c.Write(frame); err != nil {
			delete(o.clients, c)
			_ = c.Close()
		}
	}
}

func (o *Output) wake() {
	for c, want := range o.clients {
		if want == wantWakes {
			// A full socket has enough wakes in it already.
			_ = c.SetWriteDeadline(time.Now().Add(time.Millisecond))
			_, _ = c.Write([]byte{wantWakes})
		}
	}
}

func (o *Output) accept() {
	for {
		c, err := o.listener.Accept()
		if err != nil {
			return
		}
		o.served.Go(func() { o.serve(c) })
	}
}

// serve takes one client in and stays until it hangs up.
func (o *Output) serve(c net.Conn) {
	defer c.Close()
	var want [1]byte
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, want[:]); err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	o.mu.Lock()
	if o.ended {
		o.mu.Unlock()
		return
	}
	_, err := c.Write([]byte{ready})
	if err == nil {
		o.clients[c] = want[0]
	}
	o.mu.Unlock()
	_, _ = io.Copy(io.Discard, c) // until the client, or Close, closes
	o.mu.Lock()
	delete(o.clients, c)
	o.mu.Unlock()
}
