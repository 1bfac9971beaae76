// Command shim is what stays with containers: the parent of their first
// processes, which runs runc for them, keeps their exit codes, and carries their
// output to the log and to attached clients, whether or not a daemon is there.
// One shim serves several containers over containerd's task API (ttrpc). The
// daemon starts it with the listening socket as file 3; see engine/shims.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// idle is how long a shim without containers waits for a daemon to come back.
const idle = time.Minute

func main() {
	namespace := flag.String("namespace", "skep", "containerd's namespace, part of runc's state path")
	flag.Parse()
	if err := run(*namespace); err != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
		os.Exit(1)
	}
}

func run(namespace string) error {
	debug.SetGCPercent(40)
	goruntime.GOMAXPROCS(2)
	_ = log.SetLevel("warn")
	signals := make(chan os.Signal, 32)
	// TERM and INT are ignored: the containers' parent does not leave them.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	signal.Notify(signals, unix.SIGCHLD)
	if err := reaper.SetSubreaper(1); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	ctx, sd := shutdown.WithShutdown(namespaces.WithNamespace(context.Background(), namespace))
	go reap(ctx, signals)

	file := os.NewFile(3, "socket")
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	_ = file.Close()
	exits := &exitWriter{paths: map[string]string{}}
	tasks, err := task.NewTaskService(ctx, exits, sd)
	if err != nil {
		return err
	}
	svc := newService(tasks, exits)
	clients := &peers{}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(clients))
	if err != nil {
		return err
	}
	taskapi.RegisterTTRPCTaskService(server, svc)
	go leaveWhenIdle(ctx, sd, clients, svc)
	serve := make(chan error, 1)
	go func() { serve <- server.Serve(ctx, listener) }()
	select {
	case <-sd.Done():
		return nil
	case err := <-serve:
		return err
	}
}

func reap(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			if err := reaper.Reap(); err != nil {
				log.L.WithError(err).Error("children were not reaped")
			}
		}
	}
}

// leaveWhenIdle ends a shim that neither a container nor a daemon needs, and
// gives memory back while it is quiet.
func leaveWhenIdle(ctx context.Context, sd shutdown.Service, clients *peers, svc *service) {
	tick := time.NewTicker(idle / 2)
	defer tick.Stop()
	rounds := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if svc.takeBusy() {
			debug.FreeOSMemory()
		}
		if svc.count() > 0 || clients.open() > 0 {
			rounds = 0
			continue
		}
		if rounds++; rounds == 2 {
			sd.Shutdown()
			return
		}
	}
}

// peers admits connections of the same user and knows how many are open.
type peers struct {
	mu sync.Mutex
	n  int
}

func (p *peers) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *peers) add(d int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += d
}

// Handshake implements ttrpc.Handshaker.
func (p *peers) Handshake(ctx context.Context, c net.Conn) (net.Conn, any, error) {
	c, info, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	p.add(1)
	return &countedConn{Conn: c, peers: p}, info, nil
}

type countedConn struct {
	net.Conn
	peers *peers
	once  sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.peers.add(-1) })
	return c.Conn.Close()
}
