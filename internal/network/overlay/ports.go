package overlay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// portHolder keeps a listening socket for each published port, so that others
// see that it is taken, and so that a port another program had first is not
// taken from it. The rules lead connections past the sockets.
type portHolder struct {
	ns    netns.NsHandle
	log   *slog.Logger
	held  map[port]heldPort
	taken map[port]string // by whom, as far as it can be found out
}

type heldPort struct{ io.Closer }

// acquire tries to hold the ports it does not hold yet, and notes who has those
// it cannot get.
func (h *portHolder) acquire(want map[port]publication) {
	for p := range want {
		if _, have := h.held[p]; have {
			continue
		}
		s, err := h.listen(p)
		if err == nil {
			if h.taken[p] != "" {
				delete(h.taken, p)
				h.log.Info("published port is free now", "port", p.String(), "service", want[p].svc.Name)
			}
			h.held[p] = heldPort{s}
			continue
		}
		owner := err.Error()
		if errors.Is(err, unix.EADDRINUSE) {
			owner = h.owner(p)
		}
		if h.taken[p] != owner {
			h.taken[p] = owner
			h.log.Error("published port is in use on this node; the node does not serve it",
				"port", p.String(), "service", want[p].svc.Name, "owner", owner)
		}
	}
	for p := range h.taken {
		if _, wanted := want[p]; !wanted {
			delete(h.taken, p)
		}
	}
}

// release lets go of all ports but those to keep.
func (h *portHolder) release(keep map[port]publication) {
	for p, s := range h.held {
		if _, stays := keep[p]; !stays {
			_ = s.Close()
			delete(h.held, p)
		}
	}
	if keep == nil {
		clear(h.taken)
	}
}

func (h *portHolder) releaseAll() { h.release(nil) }

func (h *portHolder) listen(p port) (s io.Closer, err error) {
	addr := net.JoinHostPort("0.0.0.0", strconv.Itoa(int(p.number)))
	err = namespace.Do(h.ns, func() error {
		var lc net.ListenConfig
		var err error
		switch p.proto {
		case unix.IPPROTO_TCP:
			s, err = lc.Listen(context.Background(), "tcp4", addr)
		case unix.IPPROTO_UDP:
			s, err = lc.ListenPacket(context.Background(), "udp4", addr)
		default:
			s = io.NopCloser(nil) // SCTP: nothing to hold it with
		}
		return err
	})
	return s, err
}

// owner finds out which program holds a port: its command and process id.
func (h *portHolder) owner(p port) string {
	const unknown = "another program"
	inodes := map[string]bool{}
	err := namespace.Do(h.ns, func() error {
		for _, file := range []string{protocolName(p.proto), protocolName(p.proto) + "6"} {
			f, err := os.Open("/proc/thread-self/net/" + file)
			if err != nil {
				continue // no IPv6
			}
			socketsOn(f, p.number, p.proto == unix.IPPROTO_TCP, inodes)
			_ = f.Close()
		}
		return nil
	})
	if err != nil || len(inodes) == 0 {
		return unknown
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !inodes[to] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
	}
	return unknown
}

// socketsOn adds the sockets of a /proc/net table that are bound to the port,
// as their links in /proc/PID/fd read.
func socketsOn(table io.Reader, number uint16, listening bool, inodes map[string]bool) {
	lines := bufio.NewScanner(table)
	want := fmt.Sprintf(":%04X", number)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		const state, inode, listen = 3, 9, "0A"
		if len(f) <= inode || !strings.HasSuffix(f[1], want) || listening && f[state] != listen {
			continue
		}
		inodes["socket:["+f[inode]+"]"] = true
	}
}
