// Package transcripts types commands at skep with the real docker command line
// and compares what it prints, word for word, with transcripts.
//
// The transcripts in testdata were made from those of Docker itself and differ
// only where docs/differences.md says so. `go test -update` writes what skep says
// now; the difference is then for the reader of the commit to judge.
package transcripts

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what skep prints into the transcripts")

const (
	cmdTimeout = 3 * time.Minute
	pollEvery  = 100 * time.Millisecond
	fleets     = 5
	patience   = 90 * time.Second // no test asserts a time; this only ends a hang
	logLines   = 40               // of each daemon, when a transcript fails
	testRoot   = "/var/lib/skep-test-transcripts"
)

// fleet is the machines that a row of transcripts shares.
type fleet struct {
	root   string
	config string // an empty folder of settings for the docker command
	addrs  map[string]string

	machines []string
	ver      string
	images   string // what a machine has at first, one a line
}

// TestMain lets more tests run side by side than there are cores: most of a
// transcript is waiting, as its user would.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set(strconv.Itoa(fleets + 1)) // the flags' fleet is beside them
	}
	os.Exit(m.Run())
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

// newFleet makes a fleet without machines. What it is given ends with the test.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: machines need root; run as root to test on several hosts")
	}
	for _, file := range []string{skepBin(t), busybox(t)} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%v: run `make build images` first", err)
		}
	}
	root := testRoot
	if r := os.Getenv("SKEP_MACHINES"); r != "" {
		root = r
	}
	root += "-" + strings.ToLower(filepath.Base(t.Name())) // tests run side by side
	f := &fleet{root: root, config: t.TempDir(), addrs: map[string]string{}}
	f.skep(t, "machine", "rm", "-f", "--all")
	t.Cleanup(func() {
		if os.Getenv("SKEP_KEEP") == "" {
			f.skep(t, "machine", "rm", "-f", "--all")
		}
	})
	return f
}

func busybox(t *testing.T) string { return repo(t, ".cache", "images", "busybox.tar") }

// need makes the machines that are not there yet, with busybox on each.
func (f *fleet) need(t *testing.T, machines []string) {
	t.Helper()
	for _, m := range machines {
		if slices.Contains(f.machines, m) {
			continue
		}
		f.skep(t, "machine", "create", m)
		f.machines = append(f.machines, m)
		f.addrs[m] = f.skep(t, "machine", "ip", m)
		// Nobody answers for names: no registry is found, here or in CI.
		f.skep(t, "machine", "ssh", m, "sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
		f.do(t, m, "docker load -q -i "+busybox(t))
	}
	if f.ver == "" {
		// An address beside the machines' that nobody has.
		first := f.addrs[f.machines[0]]
		f.addrs["nobody"] = first[:strings.LastIndex(first, ".")] + ".250"
		f.ver = f.do(t, f.machines[0], "docker version --format '{{.Server.Version}}'")
		f.images = f.do(t, f.machines[0], listImages)
	}
}

// logSizes returns how long the daemons' logs are now.
func (f *fleet) logSizes() map[string]int64 {
	sizes := map[string]int64{}
	for _, m := range f.machines {
		if i, err := os.Stat(f.logFile(m)); err == nil {
			sizes[m] = i.Size()
		}
	}
	return sizes
}

// showLogs shows the end of what the daemons have logged since from.
func (f *fleet) showLogs(t *testing.T, from map[string]int64) {
	t.Helper()
	for _, m := range f.machines {
		b, err := os.ReadFile(f.logFile(m))
		if err != nil {
			t.Log(err)
			continue
		}
		b = bytes.TrimSpace(b[min(from[m], int64(len(b))):])
		lines := strings.Split(string(b), "\n")
		t.Logf("--- the daemon of %s\n%s", m, strings.Join(lines[max(0, len(lines)-logLines):], "\n"))
	}
}

func (f *fleet) logFile(machine string) string { return filepath.Join(f.root, machine, "daemon.log") }

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

const (
	listImages = "docker images --format '{{.Repository}}:{{.Tag}}'"
	// Containers first: many would let the time of grace pass.
	forget = "docker ps -aq | xargs -r docker rm -f; docker swarm leave --force; docker ps -aq | xargs -r docker rm -f; docker volume prune -af; docker network prune -f; " +
		listImages + " | grep -vxF '%s' | xargs -r docker rmi"
)

// swarm takes all machines out of their swarms and makes one of those named,
// with the first as its manager.
func (f *fleet) swarm(t *testing.T, members []string) {
	t.Helper()
	each(f.machines[1:], func(m string) { f.run(t, m, fmt.Sprintf(forget, f.images)) })
	f.run(t, f.machines[0], fmt.Sprintf(forget, f.images)) // last, so that the others can tell it
	if len(members) == 0 {
		return
	}
	f.do(t, members[0], "docker swarm init --advertise-addr eth0")
	token := f.do(t, members[0], "docker swarm join-token -q worker")
	each(members[1:], func(m string) {
		if b := f.run(t, m, "docker swarm join --token "+token+" "+f.addrs[members[0]]); b.exit != 0 {
			t.Errorf("%s does not join: %s", m, b.stderr)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// each does something for every machine at once.
func each(machines []string, do func(machine string)) {
	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() { do(m) })
	}
	wg.Wait()
}

// play types a script's commands and returns it with what they printed. Commands
// that are to print something eventually are typed until they do; once one has
// not, what follows may well not either and is given little time.
func (f *fleet) play(t *testing.T, s script) script {
	t.Helper()
	f.swarm(t, s.swarm)
	n := newNames(f.addrs, f.ver)
	got := s
	got.blocks = nil
	wait := patience
	if *update {
		wait = 3 * time.Second
	}
	for _, want := range s.blocks {
		line := n.expand(want.command)
		var b block
		began := time.Now()
		for { // the machines' own processes are what we wait for
			try := n.clone()
			b = f.run(t, want.host, line)
			b.stdout, b.stderr = try.normal(b.stdout), try.normal(b.stderr)
			if !want.eventually || same(b, want) || time.Since(began) > wait {
				n = try
				break
			}
			time.Sleep(pollEvery)
		}
		if took := time.Since(began); took > time.Second && testing.Verbose() {
			t.Logf("%.1f s: %s $ %.150s", took.Seconds(), want.host, want.command)
		}
		if !same(b, want) {
			wait = 3 * time.Second
		}
		b.notes, b.command, b.eventually = want.notes, want.command, want.eventually
		got.blocks = append(got.blocks, b)
	}
	return got
}

func same(a, b block) bool {
	return a.stdout == b.stdout && a.stderr == b.stderr && a.exit == b.exit
}

// long is about how many seconds the longest transcripts take.
var long = map[string]int{"11-service-update": 60, "26-update-failure": 55, "10-service-scale": 40, "07-service-create": 30, "04-node": 30, "09-service-ps-history": 30, "20-swarm-leave": 30, "18-service-errors": 25}

// name returns what a transcript's file is about.
func name(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txt") }

// TestTranscripts plays every transcript in testdata: several side by side, each
// row on machines of its own.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	// The longest first, so that none begins when the others are at their end.
	slices.SortStableFunc(files, func(a, b string) int { return cmp.Compare(-long[name(a)], -long[name(b)]) })
	var taken atomic.Int64
	for i := range fleets {
		t.Run(fmt.Sprintf("fleet%d", i), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			for i := taken.Add(1); i <= int64(len(files)); i = taken.Add(1) {
				file := files[i-1]
				t.Run(name(file), func(t *testing.T) { f.check(t, file) })
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
	f.need(t, want.hosts)
	from := f.logSizes()
	defer func() {
		if t.Failed() {
			f.showLogs(t, from)
		}
	}()
	got := f.play(t, want)
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for i, b := range want.blocks {
		if g := got.blocks[i]; !same(g, b) {
			t.Errorf("-want +got\n%s", diffLines(b.String(), g.String()))
		}
	}
}
