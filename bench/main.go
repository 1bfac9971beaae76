// Command bench measures skep beside Docker in one run: both in hosts made the
// same way, run after run in turn. `make bench` calls it through run.sh, which
// prepares the binary, the image and the peer.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// measurement is one thing to measure. Its run records figures by the names it
// chooses; hosts are made by it and removed after it.
type measurement struct {
	name, about string
	runs        int
	run         func(context.Context, *bench) error
}

func measurements() []measurement {
	return []measurement{
		{"container-start", "one container: run -d as typed and through the API, beside containerd and runc alone", 11, containerStart},
		{"replicas", "1, 10, 50, 100 replicas to running: wall and CPU seconds", 3, replicas("replicas", plain)},
		{"replicas-overlay", "the same on an overlay network", 3, replicas("replicas-overlay", onOverlay)},
		{"replicas-ingress", "the same with an ingress port", 3, replicas("replicas-ingress", onIngress)},
		{"scale", "a service scaled from 1 to 50 and back", 3, scale},
		{"host-lost", "a worker's power cut until its tasks run elsewhere", 3, hostLost},
		{"leader-lost", "the leader's power cut until a write succeeds, and until its tasks run elsewhere", 3, leaderLost},
		{"memory", "an idle daemon, an idle manager, and each task with its shim: anonymous and kernel memory", 3, memory},
		{"scheduler", "the scheduler alone: 100k tasks on 1k nodes, 1M on 10k", 3, scheduler},
		{"log-per-task", "bytes of Raft log a task, from creation to running", 1, logPerTask},
		{"throughput", "TCP between containers on two hosts: overlay, through a virtual address, beside plain VXLAN", 5, throughput},
		{"writes", "writes a second: three managers on one disk, eight clients", 3, writes},
		{"sessions", "a manager with 1,000 nodes and 10,000 tasks: memory, CPU at rest, 10,000 replicas to running", 1, sessions},
		{"sessions-lost", "the leader's power cut under 1,000 nodes until all have their sessions with the next", 1, sessionsLost},
		{"name", "a new service's name on another node", 7, name},
		{"update", "requests lost in a rolling update, a scale-down and a drain under load", 3, update},
	}
}

func main() {
	if len(os.Args) < 2 || os.Args[1] == "" {
		list()
		return
	}
	if err := one(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func list() {
	fmt.Println("Measurements; run one with: make bench NAME=" + measurements()[0].name)
	for _, m := range measurements() {
		fmt.Printf("  %-17s %s\n", m.name, m.about)
	}
}

func one(name string) error {
	for _, m := range measurements() {
		if m.name != name {
			continue
		}
		ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer cancel()
		ctx, cancel = context.WithTimeout(ctx, 10*time.Minute) // only ends a hang
		defer cancel()
		b, err := newBench(m)
		if err != nil {
			return err
		}
		unlock, err := onlyOne()
		if err != nil {
			return err
		}
		defer unlock()
		if err := b.clear(); err != nil { // what a killed run left
			return err
		}
		start := time.Now()
		err = m.run(ctx, b)
		if errors.Is(ctx.Err(), context.Canceled) {
			err = errors.New("interrupted")
		}
		if err = errors.Join(err, b.clear()); err != nil {
			return err
		}
		return b.print(os.Stdout, time.Since(start))
	}
	return fmt.Errorf("no measurement %q; `make bench` lists them", name)
}

// onlyOne sees to it that no other bench runs: it would remove this one's hosts,
// and neither would measure anything.
func onlyOne() (unlock func(), err error) {
	f, err := os.OpenFile("/run/lock/skep-bench", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another bench is running")
	}
	return func() { f.Close() }, nil
}

// envInt reads a number from the environment.
func envInt(key string, otherwise int) (int, error) {
	n, err := strconv.Atoi(cmp.Or(os.Getenv(key), strconv.Itoa(otherwise)))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%s: a number is needed", key, os.Getenv(key))
	}
	return n, nil
}
