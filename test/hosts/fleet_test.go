// Package hosts tests skep as its users have it: the built binary, several hosts
// made by `skep machine`, real containers, and both command lines, skep's own
// and the real docker.
package hosts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	cmdTimeout  = 2 * time.Minute
	pollEvery   = 100 * time.Millisecond
	patience    = 90 * time.Second // no test asserts a time; this only ends a hang
	fleetPrefix = "/var/lib/skep-test-"
)

func repo() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

func skepBin() string { return filepath.Join(repo(), "bin", "skep") }

// fleet is a set of machines of one test. They are gone when the test ends,
// however it ends, and what an earlier run left is removed first.
type fleet struct {
	t    *testing.T
	root string
	cli  string // "skep" or "docker": what typed commands run as
}

func newFleet(t *testing.T, names ...string) *fleet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: machines need root; run as root to test on several hosts")
	}
	if _, err := os.Stat(skepBin()); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	safe := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "")
	f := &fleet{t: t, root: fleetPrefix + safe, cli: "skep"}
	f.removeAll()
	t.Cleanup(func() {
		if t.Failed() {
			f.logs()
		}
		if os.Getenv("SKEP_KEEP") == "" {
			f.removeAll()
		}
	})
	f.skep("machine", append([]string{"create"}, names...)...)
	return f
}

// in returns the same fleet for a subtest.
func (f *fleet) in(t *testing.T) *fleet {
	g := *f
	g.t = t
	return &g
}

func (f *fleet) removeAll() {
	f.t.Helper()
	f.skep("machine", "rm", "-f", "--all")
}

// logs shows the end of every daemon's log, for a failed test.
func (f *fleet) logs() {
	files, _ := filepath.Glob(filepath.Join(f.root, "*", "daemon.log"))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		lines := strings.Split(string(b), "\n")
		if len(lines) > 60 {
			lines = lines[len(lines)-60:]
		}
		f.t.Logf("--- %s\n%s", file, strings.Join(lines, "\n"))
	}
}

// result is what a command printed and how it ended.
type result struct {
	out, err string
	exit     int
}

func (f *fleet) exec(env []string, name string, args ...string) result {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cmdTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), append(env, "SKEP_MACHINES="+f.root)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		f.t.Fatalf("%s %s: hangs\n%s%s", name, strings.Join(args, " "), out.String(), errOut.String())
	}
	if cmd.ProcessState == nil {
		f.t.Fatalf("%s: %v", name, err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// skep runs the binary itself, without a machine; it must succeed.
func (f *fleet) skep(cmd string, args ...string) string {
	f.t.Helper()
	r := f.exec(nil, skepBin(), append([]string{cmd}, args...)...)
	if r.exit != 0 {
		f.t.Fatalf("skep %s %s: exit %d\n%s%s", cmd, strings.Join(args, " "), r.exit, r.out, r.err)
	}
	return r.out
}

// try types a command line at a machine's engine, as skep or docker.
func (f *fleet) try(machine, line string, more ...string) result {
	f.t.Helper()
	bin := "docker"
	if f.cli == "skep" {
		bin = skepBin()
	}
	host := "DOCKER_HOST=unix://" + filepath.Join(f.root, machine, "skep.sock")
	r := f.exec([]string{host}, bin, append(strings.Fields(line), more...)...)
	if testing.Verbose() {
		f.t.Logf("%s $ %s %s %q\n%s%s[exit %d]", machine, f.cli, line, more, r.out, r.err, r.exit)
	}
	return r
}

// do types a command that must succeed and returns what it printed, trimmed.
func (f *fleet) do(machine, line string, more ...string) string {
	f.t.Helper()
	r := f.try(machine, line, more...)
	if r.exit != 0 {
		f.t.Fatalf("%s $ %s %s %q: exit %d\n%s%s", machine, f.cli, line, more, r.exit, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// refused types a command that must fail with an exit code and these words.
func (f *fleet) refused(exit int, words, machine, line string, more ...string) {
	f.t.Helper()
	r := f.try(machine, line, more...)
	if r.exit != exit || !strings.Contains(r.err+r.out, words) {
		f.t.Fatalf("%s $ %s %s %q: exit %d (want %d)\nwant %q in:\n%s%s", machine, f.cli, line, more, r.exit, exit, words, r.out, r.err)
	}
}

// eventually waits until check returns "", and shows its last complaint when
// that does not happen.
func (f *fleet) eventually(what string, check func() string) {
	f.t.Helper()
	end := time.Now().Add(patience)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s: %s", what, complaint)
		}
		time.Sleep(pollEvery) // the machines' own processes are what we wait for
	}
}

// ip returns a machine's address.
func (f *fleet) ip(machine string) string {
	return strings.TrimSpace(f.skep("machine", "ip", machine))
}

// swarm makes the first name a swarm's first manager and joins the others.
func (f *fleet) swarm(managers, workers []string) {
	f.t.Helper()
	f.do(managers[0], "swarm init --advertise-addr eth0")
	for _, group := range []struct {
		role  string
		names []string
	}{{"manager", managers[1:]}, {"worker", workers}} {
		token := f.do(managers[0], "swarm join-token -q "+group.role)
		for _, n := range group.names {
			f.do(n, "swarm join --advertise-addr eth0 --token "+token+" "+f.ip(managers[0])+":2377")
		}
	}
}

// load gives images (of .cache/images) to machines.
func (f *fleet) load(image string, machines ...string) {
	f.t.Helper()
	tar := filepath.Join(repo(), ".cache", "images", image+".tar")
	if _, err := os.Stat(tar); err != nil {
		f.t.Fatalf("%v: run `make images` first", err)
	}
	for _, m := range machines {
		f.do(m, "load -q -i "+tar)
	}
}

// task is a row of service ps.
type task struct{ id, name, node, desired, state, err string }

func (f *fleet) tasks(machine, service string, filters ...string) []task {
	f.t.Helper()
	args := []string{"--format", "{{.ID}}|{{.Name}}|{{.Node}}|{{.DesiredState}}|{{.CurrentState}}|{{.Error}}"}
	for _, x := range filters {
		args = append(args, "--filter", x)
	}
	r := f.try(machine, "service ps --no-trunc "+service, args...)
	var ts []task
	for line := range strings.Lines(r.out) {
		p := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 6)
		if len(p) == 6 {
			ts = append(ts, task{p[0], p[1], p[2], p[3], p[4], p[5]})
		}
	}
	return ts
}

// running waits until a service has n running tasks and no others wanted.
func (f *fleet) running(machine, service string, n int) []task {
	f.t.Helper()
	var up []task
	f.eventually(fmt.Sprintf("%s at %d running tasks", service, n), func() string {
		up = nil
		all := f.tasks(machine, service, "desired-state=running")
		for _, t := range all {
			if strings.HasPrefix(t.state, "Running") {
				up = append(up, t)
			}
		}
		if len(up) == n && len(all) == n {
			return ""
		}
		return fmt.Sprintf("%d running of %d wanted: %+v", len(up), len(all), all)
	})
	return up
}

// perNode counts tasks by node.
func perNode(ts []task) map[string]int {
	n := map[string]int{}
	for _, t := range ts {
		n[t.node]++
	}
	return n
}

// both runs a walkthrough once with each command line.
func both(t *testing.T, walk func(t *testing.T, cli string)) {
	for _, cli := range []string{"skep", "docker"} {
		t.Run(cli, func(t *testing.T) { walk(t, cli) })
	}
}
