package machine

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own machines' first process and daemon.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "machine" {
		c := Command()
		c.SetArgs(os.Args[2:])
		if err := c.Execute(); err != nil {
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		if err := fakeDaemon(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// fakeDaemon answers _ping on every socket, and on TCP port 8080 with the
// machine's host name. It does all that a machine asks of its daemon.
func fakeDaemon(args []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, host) })
	listeners := []string{"tcp 0.0.0.0:8080"}
	for i, a := range args {
		if a == "--host" {
			path := strings.TrimPrefix(args[i+1], "unix://")
			os.Remove(path)
			os.MkdirAll(filepath.Dir(path), 0o755)
			listeners = append(listeners, "unix "+path)
		}
	}
	for _, l := range listeners {
		network, addr, _ := strings.Cut(l, " ")
		ln, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		go http.Serve(ln, nil)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	return os.WriteFile("/run/in-order", nil, 0o644)
}

func testFleet(t *testing.T) *Fleet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: machines need root")
	}
	f, err := OpenFleet("/var/lib/skep-test-machine")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.RemoveAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.RemoveAll(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := net.InterfaceByName(f.Bridge); err == nil {
			t.Errorf("bridge %s is left", f.Bridge)
		}
		if _, err := os.Stat(f.Root); err == nil {
			t.Errorf("%s is left", f.Root)
		}
	})
	return f
}

func (f *Fleet) make(t *testing.T, name string) *Machine {
	t.Helper()
	m, err := f.Create(context.Background(), name, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// get asks the machine's port 8080; from is another machine or nil for the host.
func get(t *testing.T, from, m *Machine) (string, error) {
	t.Helper()
	if from == nil {
		c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + m.Addr.String() + ":8080/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		return b.String(), err
	}
	cmd := from.Command("curl", "-s", "--max-time", "1", "http://"+m.Addr.String()+":8080/")
	var out bytes.Buffer
	cmd.Stdout = &out
	err := from.Exec(cmd)
	return out.String(), err
}

// Fleets made at the same moment, as tests side by side make them, never share a
// subnet.
func TestFleetsChooseTheirSubnetsOneAtATime(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: machines need root")
	}
	fleets := make([]*Fleet, 8)
	errs := make([]error, len(fleets))
	var wg sync.WaitGroup
	for i := range fleets {
		f, err := OpenFleet(filepath.Join(t.TempDir(), "fleet"))
		if err != nil {
			t.Fatal(err)
		}
		fleets[i] = f
		t.Cleanup(func() {
			if err := f.removeNetwork(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { errs[i] = f.ensureBridge() })
	}
	wg.Wait()
	holder := map[netip.Prefix]int{}
	for i, f := range fleets {
		if errs[i] != nil {
			t.Error(errs[i])
		} else if j, taken := holder[f.Subnet]; taken {
			t.Errorf("fleets %d and %d both have %s", j, i, f.Subnet)
		}
		holder[f.Subnet] = i
	}
}

func TestMachinesAreHostsOfTheirOwn(t *testing.T) {
	f := testFleet(t)
	a, b := f.make(t, "alpha"), f.make(t, "beta")
	for _, m := range []*Machine{a, b} {
		if got, err := get(t, nil, m); err != nil || got != m.Name {
			t.Errorf("from the host, %s answers %q, %v", m.Name, got, err)
		}
	}
	if got, err := get(t, a, b); err != nil || got != "beta" {
		t.Errorf("from alpha, beta answers %q, %v", got, err)
	}
	var out bytes.Buffer
	// Own hostname, own /run, own processes, own /etc.
	err := a.ssh([]string{"hostname; cat /etc/hostname; ls /run; echo $$; grep -c alpha /etc/hosts"}, nil, &out, &out)
	if err != nil {
		t.Fatal(err, out.String())
	}
	if s := out.String(); !strings.HasPrefix(s, "alpha\nalpha\nskep\n") {
		t.Errorf("inside alpha:\n%s", s)
	}
	if err := a.ssh([]string{"exit 7"}, nil, &out, &out); err == nil || !strings.Contains(err.Error(), "7") {
		t.Errorf("exit 7 inside came out as %v", err)
	}
	if _, err := f.Create(context.Background(), "alpha", CreateOptions{}); err == nil {
		t.Error("a second alpha was made")
	}
	for _, bad := range []string{"", "../x", "a b", "-x", strings.Repeat("x", 64)} {
		if _, err := f.Create(context.Background(), bad, CreateOptions{}); err == nil {
			t.Errorf("name %q was taken", bad)
		}
	}
}

func TestPowerAndPartition(t *testing.T) {
	f := testFleet(t)
	ctx := context.Background()
	a, b, c := f.make(t, "alpha"), f.make(t, "beta"), f.make(t, "gamma")

	if err := f.Partition([]*Machine{a, c}); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, a, b); err == nil {
		t.Error("alpha reaches beta through a partition")
	}
	if got, err := get(t, a, c); err != nil || got != "gamma" {
		t.Errorf("alpha and gamma are on one side, but: %q, %v", got, err)
	}
	if got, err := get(t, nil, a); err != nil || got != "alpha" {
		t.Errorf("the host does not reach a partitioned machine: %q, %v", got, err)
	}
	if err := f.Heal([]*Machine{a, c}); err != nil {
		t.Fatal(err)
	}
	if got, err := get(t, a, b); err != nil || got != "beta" {
		t.Errorf("after heal: %q, %v", got, err)
	}

	// Something of the machine's disk must survive both ways of going down.
	mark := filepath.Join(a.DataRoot(), "mark")
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, down := range []func(context.Context, *Machine) error{f.Stop, f.Kill} {
		if err := down(ctx, a); err != nil {
			t.Fatal(err)
		}
		if a.State() != Stopped {
			t.Fatalf("alpha is %s", a.State())
		}
		if _, err := get(t, nil, a); err == nil {
			t.Error("a machine that is down answers")
		}
		again, err := f.Get("alpha")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Start(ctx, again); err != nil {
			t.Fatal(err)
		}
		*a = *again
		if got, err := get(t, b, a); err != nil || got != "alpha" {
			t.Errorf("back on, alpha answers %q, %v", got, err)
		}
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
}

func TestDaemonIsStartedAgain(t *testing.T) {
	f := testFleet(t)
	m := f.make(t, "alpha")
	var out bytes.Buffer
	if err := m.ssh([]string{"kill -9 $(pgrep -x -f 'skep daemon.*')"}, nil, &out, &out); err != nil {
		t.Fatal(err, out.String())
	}
	os.Remove(m.Socket())
	if err := m.waitReady(context.Background()); err != nil {
		t.Fatal(err)
	}
}
