package stdio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Conn is a client's end of a container's output.
type Conn struct {
	c net.Conn
	r *bufio.Reader
}

// Attach connects to the output behind socket. What the container writes after
// Attach has returned will be read.
func Attach(ctx context.Context, socket string) (*Conn, error) { return dial(ctx, socket, wantOutput) }

// Watch connects to be woken when something is written.
func Watch(ctx context.Context, socket string) (*Conn, error) { return dial(ctx, socket, wantWakes) }

func dial(ctx context.Context, socket string, want byte) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := c.Write([]byte{want}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Conn{c: c, r: bufio.NewReader(c)}, nil
}

// Copy writes what arrives until the output ends, which is no error.
func (c *Conn) Copy(stdout, stderr io.Writer) error {
	var head [5]byte
	for {
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return ended(err)
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n > 1<<20 {
			return fmt.Errorf("attach: a frame of %d bytes", n)
		}
		w := stdout
		if Stream(head[0]) == Stderr {
			w = stderr
		}
		if w == nil {
			w = io.Discard
		}
		if _, err := io.CopyN(w, c.r, int64(n)); err != nil {
			return ended(err)
		}
	}
}

// Wake waits for the next wake; io.EOF says that the output has ended.
func (c *Conn) Wake() error {
	if _, err := c.r.ReadByte(); err != nil {
		return io.EOF
	}
	_, _ = c.r.Discard(c.r.Buffered())
	return nil
}

// Close hangs up.
func (c *Conn) Close() error { return c.c.Close() }

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
