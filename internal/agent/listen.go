package agent

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// listenWait bounds how long a task without a health check is given to listen on
// the TCP ports that its service publishes, before it counts as running.
const listenWait = 2 * time.Second

// awaitListener returns once the container's process listens on the ports, its
// time is up, or it cannot be told. A process is there well before it listens:
// without this the first connections to a new task are refused.
func awaitListener(ctx context.Context, pid int, ports []uint32) {
	if len(ports) == 0 || pid <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, listenWait)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		open, err := listening(pid)
		if err != nil || !slices.ContainsFunc(ports, func(p uint32) bool { return !open[p] }) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// listening returns the TCP ports that are listened on in a process's network
// namespace, as the kernel's tables tell (proc(5), /proc/net/tcp).
func listening(pid int) (map[uint32]bool, error) {
	open := map[uint32]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if os.IsNotExist(err) && table == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			const local, state, listen = 1, 3, "0A"
			cols := strings.Fields(sc.Text())
			if len(cols) <= state || cols[state] != listen {
				continue
			}
			_, hex, _ := strings.Cut(cols[local], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				open[uint32(port)] = true
			}
		}
		f.Close()
		if err := sc.Err(); err != nil {
			return nil, err
		}
	}
	return open, nil
}
