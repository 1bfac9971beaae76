// Package transcripts types commands at skep with the real docker command line
// and compares what it prints, word for word, with transcripts.
//
// The transcripts in testdata were made from those of Docker itself and differ
// only where docs/differences.md says so. `go test -update` writes what skep says
// now; the difference is then for the reader of the commit to judge.
package transcripts

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what skep prints into the transcripts")

const (
	cmdTimeout = time.Minute
	pollEvery  = 100 * time.Millisecond
	groups     = 4
	patience   = 40 * time.Second // no test asserts a time; this only ends a hang
	testRoot   = "/var/lib/skep-test-transcripts"
)

// fleet is the machines that all transcripts share.
type fleet struct {
	root   string
	config string // an empty folder of settings for the docker command
	addrs  map[string]string

	machines []string
	ver      string
}

func repo(t *testing.T, path ...string) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(append([]string{dir}, path...)...)
}

// skepBin is the binary under test; SKEP_BIN says another.
func skepBin(t *testing.T) string {
	if b := os.Getenv("SKEP_BIN"); b != "" {
		return b
	}
	return repo(t, "bin", "skep")
}

// newFleet makes the machines, with busybox on each, which end with the test.
func newFleet(t *testing.T, machines ...string) *fleet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: machines need root; run as root to test on several hosts")
	}
	tar := repo(t, ".cache", "images", "busybox.tar")
	for _, file := range []string{skepBin(t), tar} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%v: run `make build images` first", err)
		}
	}
	root := testRoot
	if r := os.Getenv("SKEP_MACHINES"); r != "" {
		root = r
	}
	root += "-" + strings.ToLower(filepath.Base(t.Name())) // tests run side by side
	f := &fleet{root: root, config: t.TempDir(), addrs: map[string]string{}, machines: machines}
	f.skep(t, "machine", "rm", "-f", "--all")
	t.Cleanup(func() {
		if t.Failed() {
			f.logs(t)
		}
		if os.Getenv("SKEP_KEEP") == "" {
			f.skep(t, "machine", "rm", "-f", "--all")
		}
	})
	f.skep(t, append([]string{"machine", "create"}, machines...)...)
	for _, m := range machines {
		f.addrs[m] = f.skep(t, "machine", "ip", m)
		// Nobody answers for names: no registry is found, here or in CI.
		f.skep(t, "machine", "ssh", m, "sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
		f.do(t, m, "docker load -q -i "+tar)
	}
	// An address beside the machines' that nobody has.
	first := f.addrs[machines[0]]
	f.addrs["nobody"] = first[:strings.LastIndex(first, ".")] + ".250"
	f.ver = f.do(t, machines[0], "docker version --format '{{.Server.Version}}'")
	return f
}

// logs shows the end of every daemon's log, for a failed test.
func (f *fleet) logs(t *testing.T) {
	t.Helper()
	for _, m := range f.machines {
		b, err := os.ReadFile(filepath.Join(f.root, m, "daemon.log"))
		t.Logf("--- %s, %v\n%s", m, err, b[max(0, len(b)-3000):])
	}
}

// run runs a command line at a machine and returns what it printed.
func (f *fleet) run(t *testing.T, machine, command string) block {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cmdTimeout)
	defer cancel()
	sock := filepath.Join(f.root, machine, "skep.sock")
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+sock, "SOCKET="+sock, "DOCKER_CONFIG="+f.config, "SKEP_MACHINES="+f.root, "SKEP="+skepBin(t))
	cmd.WaitDelay = time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil || cmd.ProcessState == nil {
		t.Errorf("%s $ %s: %v\n%s%s", machine, command, err, out.String(), errOut.String())
		return block{host: machine, command: command, exit: 255}
	}
	return block{host: machine, command: command, stdout: out.String(), stderr: errOut.String(), exit: cmd.ProcessState.ExitCode()}
}

// do runs a command that must succeed and returns what it printed, trimmed.
func (f *fleet) do(t *testing.T, machine, command string) string {
	t.Helper()
	b := f.run(t, machine, command)
	if b.exit != 0 {
		t.Fatalf("%s $ %s: exit %d\n%s%s", machine, command, b.exit, b.stdout, b.stderr)
	}
	return strings.TrimSpace(b.stdout)
}

func (f *fleet) skep(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(skepBin(t), args...)
	cmd.Env = append(os.Environ(), "SKEP_MACHINES="+f.root)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("skep %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// swarm takes all machines out of their swarms and makes one of those named,
// with the first as its manager.
func (f *fleet) swarm(t *testing.T, members []string) {
	t.Helper()
	for _, m := range f.machines {
		f.run(t, m, "docker swarm leave --force; docker ps -aq | xargs -r docker rm -f; docker volume prune -af")
	}
	if len(members) == 0 {
		return
	}
	f.do(t, members[0], "docker swarm init --advertise-addr eth0")
	token := f.do(t, members[0], "docker swarm join-token -q worker")
	for _, m := range members[1:] {
		f.do(t, m, "docker swarm join --token "+token+" "+f.addrs[members[0]])
	}
}

// play types a script's commands and returns it with what they printed. Commands
// that are to print something eventually are typed until they do.
func (f *fleet) play(t *testing.T, s script) script {
	t.Helper()
	f.swarm(t, s.swarm)
	n := newNames(f.addrs, f.ver)
	got := s
	got.blocks = nil
	for _, want := range s.blocks {
		line := n.expand(want.command)
		var b block
		for end := time.Now().Add(patience); ; time.Sleep(pollEvery) { // the machines' own processes are what we wait for
			try := n.clone()
			b = f.run(t, want.host, line)
			b.stdout, b.stderr = try.normal(b.stdout), try.normal(b.stderr)
			if !want.eventually || same(b, want) || time.Now().After(end) || *update && time.Now().After(end.Add(3*time.Second-patience)) {
				n = try
				break
			}
		}
		b.notes, b.command, b.eventually = want.notes, want.command, want.eventually
		got.blocks = append(got.blocks, b)
	}
	return got
}

func same(a, b block) bool {
	return a.stdout == b.stdout && a.stderr == b.stderr && a.exit == b.exit
}

// TestTranscripts plays every transcript in testdata.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	// Most of a transcript is waiting, as its user would: several are played side
	// by side, each group on machines of its own.
	for g := range groups {
		t.Run(fmt.Sprintf("group%d", g), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "manager1", "worker1", "worker2", "worker3")
			for i := g; i < len(files); i += groups {
				file := files[i]
				t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { f.check(t, file) })
			}
		})
	}
}

// check plays one transcript and compares.
func (f *fleet) check(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	got := f.play(t, want)
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for i, b := range want.blocks {
		if g := got.blocks[i]; !same(g, b) {
			t.Errorf("-want +got\n%s", cmp.Diff(strings.Split(b.String(), "\n"), strings.Split(g.String(), "\n")))
		}
	}
}
