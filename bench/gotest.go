package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// What needs no host is a Go benchmark or test of its room; these run them.

// gotest runs tests of a package below the repository's root, where run.sh is.
func gotest(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1"}, args...)...)
	return output(cmd, cmd.Run)
}

var (
	wallPerOp = regexp.MustCompile(`\s([0-9.]+) ns/op`)
	cpuPerOp  = regexp.MustCompile(`\s([0-9.]+) cpu-s/op`)
)

// scheduler measures a plan from nothing on one core; the reference in
// swarmkit's own benchmark is 6 to 16 s for the first.
func scheduler(ctx context.Context, b *bench) error {
	for range b.m.runs {
		if err := b.quiet(ctx); err != nil {
			return err
		}
		for _, c := range []struct{ name, bench string }{
			{"scheduler-1k-nodes-100k-tasks", "1k_nodes,_1k_services_of_100"},
			{"scheduler-10k-nodes-1M-tasks", "10k_nodes,_10k_services_of_100"},
		} {
			out, err := gotest(ctx, "-run", "^$", "-bench", "^BenchmarkPlan$/^"+c.bench+"$", "-cpu", "1", "./internal/schedule")
			if err != nil {
				return err
			}
			for _, f := range []struct {
				name, unit string
				in         *regexp.Regexp
				scale      float64
			}{{c.name, "s", wallPerOp, 1e-9}, {c.name + "-cpu", "CPU s", cpuPerOp, 1}} {
				m := f.in.FindStringSubmatch(out)
				if m == nil {
					return fmt.Errorf("no %s in:\n%s", f.name, out)
				}
				v, err := strconv.ParseFloat(m[1], 64)
				if err != nil {
					return err
				}
				b.record(b.ours, f.name, f.unit, v*f.scale)
			}
		}
	}
	return nil
}

var bytesPerTask = regexp.MustCompile(`(\d+) bytes of log a task`)

// logPerTask reads how much the simulated swarm logs for each of 10k
// tasks with an address, on 1k nodes; it is the same number each time.
func logPerTask(ctx context.Context, b *bench) error {
	out, err := gotest(ctx, "-v", "-run", "^TestThousandsOfTasks$", "./internal/sim", "-thousands", "10")
	if err != nil {
		return err
	}
	m := bytesPerTask.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("no figure in:\n%s", strings.TrimSpace(out))
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return err
	}
	b.record(b.ours, "log-per-task", "bytes", n)
	return nil
}
