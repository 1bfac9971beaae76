package daemon

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// configured loads a configuration from flags, environment and a file's text.
func configured(t *testing.T, args []string, env map[string]string, file string) (Config, []string, error) {
	t.Helper()
	c := Default()
	c.ConfigFile = filepath.Join(t.TempDir(), "daemon.json")
	if file != "" {
		if err := os.WriteFile(c.ConfigFile, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fs := pflag.NewFlagSet("daemon", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	addFlags(fs, &c)
	if err := fs.Parse(args); err != nil {
		return c, nil, err
	}
	unused, err := load(fs, &c, func(k string) string { return env[k] })
	return c, unused, err
}

func TestFlagBeatsEnvironmentBeatsFile(t *testing.T) {
	file := `{"data-root": "/file", "labels": ["a=file", "b=file"], "mtu": 1400, "debug": true, "hosts": ["unix:///file.sock"],
		"default-address-pools": [{"base": "10.9.0.0/16", "size": 24}], "log-opts": {"max-size": "1m"},
		"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}}, "proxies": {"http-proxy": "http://p"},
		"insecure-registries": ["10.0.0.0/8", "reg:5000"], "iptables": false, "init": true, "features": {"x": true}}`
	env := map[string]string{"SKEP_DAEMON_DATA_ROOT": "/env", "SKEP_DAEMON_EXEC_ROOT": "/env-exec"}
	c, unused, err := configured(t, []string{"--label", "c=flag", "--exec-root=/flag-exec", "--live-restore", "--storage-driver", "overlay2"}, env, file)
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.DataRoot, c.ExecRoot, c.Labels, c.MTU, c.Debug, c.Hosts, c.AddressPools[0].Base, c.AddressPools[0].Size,
		c.LogOpts["max-size"], c.Ulimits["nofile"].Soft, c.HTTPProxy, c.Insecure, c.Init}
	want := []any{"/env", "/flag-exec", []string{"c=flag"}, 1400, true, []string{"unix:///file.sock"}, netip.MustParsePrefix("10.9.0.0/16"), 24,
		"1m", int64(10), "http://p", []string{"10.0.0.0/8", "reg:5000"}, true}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"feature", "iptables", "live-restore", "storage-driver"}, unused); diff != "" {
		t.Error(diff)
	}
}

func TestWhatADaemonIsToldWrong(t *testing.T) {
	for _, c := range []struct {
		args []string
		file string
		err  string
	}{
		{[]string{"--nosuch"}, "", "unknown flag: --nosuch"},
		{nil, `{"nosuch": 1}`, "the following directives don't match any configuration option: nosuch"},
		{nil, `{"mtu": "x"}`, "mtu: invalid argument"},
		{nil, `[`, "unexpected end of JSON input"},
		{[]string{"--data-root", "here"}, "", "must be absolute"},
		{[]string{"--log-level", "loud"}, "", "invalid logging level: loud"},
		{[]string{"--log-driver", "syslog"}, "", `log driver "syslog" is not built yet`},
		{[]string{"--label", "x"}, "", "bad attribute format: x"},
		{[]string{"--default-address-pool", "base=10.0.0.0/8,size=4"}, "", "size must lie between"},
		{[]string{"--default-address-pool", "base=10.0.0.0/8,colour=4"}, "", "unexpected key 'colour'"},
		{[]string{"--tlsverify"}, "", "TLS needs --tlscert and --tlskey"},
		{[]string{"--config-file", "/nosuch/daemon.json"}, "", "no such file"},
	} {
		_, _, err := configured(t, c.args, nil, c.file)
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v %s: got %v, want %q", c.args, c.file, err, c.err)
		}
	}
}

func TestDefaultsFollowTheExecRoot(t *testing.T) {
	c, _, err := configured(t, []string{"--exec-root", "/x"}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Hosts[0] != "unix:///x/skep.sock" || c.PidFile != "/x/skep.pid" {
		t.Errorf("hosts %v, pid file %s", c.Hosts, c.PidFile)
	}
}

func TestStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s.sock")
	log := slog.New(slog.DiscardHandler)
	l, err := listenUnix(path, "docker", log)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := listenUnix(path, "docker", log); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("second daemon: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := listenUnix(path, "docker", log)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	again.Close()
	if _, err := listenUnix(path, "no-such-group", log); err == nil {
		t.Error("a group that does not exist was accepted")
	}
}

func TestPidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep.pid")
	for _, old := range []string{"", "garbage", "999999999", strconv.Itoa(os.Getppid())} { // the parent is no daemon
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writePid(path); err != nil {
			t.Errorf("after %q: %v", old, err)
		}
		if raw, _ := os.ReadFile(path); string(raw) != strconv.Itoa(os.Getpid()) {
			t.Errorf("after %q the file holds %q", old, raw)
		}
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

func TestRuncVersionIsThePinnedOne(t *testing.T) {
	mod, err := os.ReadFile("../../third_party/runc/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/opencontainers/runc v" + runcVersion + " "; !strings.Contains(string(mod), want) {
		t.Errorf("third_party/runc/go.mod does not pin %q", want)
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add(`{"hosts": ["x"], "log-opts": {"a": {"b": [1, null]}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		configured(t, nil, nil, text)
	})
}
