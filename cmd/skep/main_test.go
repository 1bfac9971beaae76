package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The test binary is also skep, and docker's stand-in, so that what is typed in
// the scripts runs the code under test.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"skep": main})
}

// host is a daemon on real parts, in a network namespace of its own.
type host struct {
	dir    string
	socket string
	args   []string
	cmd    *exec.Cmd
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: running containers needs root")
	}
	// The path must be short: sockets are below it.
	dir, err := os.MkdirTemp("/tmp", "skep-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir, socket: filepath.Join(dir, "run", "skep.sock")}
	h.args = []string{"daemon", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"),
		"--config-file", filepath.Join(dir, "daemon.json"), "--cgroup-parent", "/" + filepath.Base(dir)}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte(`{"labels": ["where=test"], "live-restore": true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.remove(t) })
	h.start(t)
	return h
}

// start starts the daemon, in the host's namespace once there is one.
func (h *host) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(h.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ns := filepath.Join(h.dir, "netns")
	if _, err := os.Stat(ns); err != nil {
		h.makeNamespace(t, ns)
	}
	skep, err := exec.LookPath("skep")
	if err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command("nsenter", append([]string{"--net=" + ns, skep}, h.args...)...)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the daemon answers", h.log, func() bool { return h.docker("version").Run() == nil })
}

// makeNamespace keeps a network namespace alive as a file.
func (h *host) makeNamespace(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("ip link set lo up && mount --bind /proc/self/ns/net %s", path)
	if out, err := exec.Command("unshare", "--net", "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("network namespace: %v: %s", err, out)
	}
}

// stop ends the daemon in order; its containers go on.
func (h *host) stop(t *testing.T) {
	t.Helper()
	if h.cmd == nil {
		return
	}
	h.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- h.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("daemon ended with %v\n%s", err, h.log())
		}
	case <-time.After(30 * time.Second):
		h.cmd.Process.Kill()
		<-ended
		t.Errorf("daemon did not end\n%s", h.log())
	}
	h.cmd = nil
}

func (h *host) remove(t *testing.T) {
	if h.cmd != nil {
		if ids, err := h.docker("ps", "-aq").Output(); err == nil && len(ids) > 0 {
			h.docker(append([]string{"rm", "-f", "-v"}, strings.Fields(string(ids))...)...).Run()
		}
		h.stop(t)
	}
	if t.Failed() {
		t.Logf("daemon's log:\n%s", h.log())
	}
	h.killShims()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], h.dir+"/") {
			syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(h.dir); err != nil {
		t.Error(err)
	}
	removeCgroups(filepath.Base(h.dir))
}

// killShims ends the shims that outlive the daemon by design.
func (h *host) killShims() {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		raw, _ := os.ReadFile(p)
		if args := strings.Split(string(raw), "\x00"); strings.HasPrefix(args[0], h.dir+"/") {
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// removeCgroups removes the empty cgroups below the parent's name.
func removeCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		exec.Command("find", root, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
	}
}

func (h *host) log() string {
	raw, _ := os.ReadFile(filepath.Join(h.dir, "daemon.log"))
	return string(raw)
}

// docker is the real docker command line, pointed at this host.
func (h *host) docker(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Cancel = func() error { defer cancel(); return cmd.Process.Kill() }
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket, "DOCKER_CONFIG="+h.dir)
	return cmd
}

// until waits for a condition.
func until(t *testing.T, what string, log func() string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s\n%s", what, log())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// importBusybox makes the image that the scripts run: one static program.
func (h *host) importBusybox(t *testing.T) {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("SKIPPED: busybox-static is not installed: ", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(hdr *tar.Header, body []byte) {
		hdr.Size = int64(len(body))
		if err := errors.Join(w.WriteHeader(hdr), second(w.Write(body))); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/", "root/", "proc/", "sys/", "dev/"} {
		add(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	add(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nnogroup:x:65534:\n"))
	for _, name := range strings.Fields("sh cat echo sleep ls ps true false id env hostname wget nc httpd stty pwd touch mkdir kill seq head tail grep wc printf test tty ip") {
		add(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := h.docker("import", "-c", `CMD ["sh"]`, "-c", "ENV PATH=/bin", "-", "busybox:1")
	cmd.Stdin = &layer
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import: %v: %s\n%s", err, out, h.log())
	}
}

func second(_ int, err error) error { return err }

// TestEngine types what people type, with docker and with skep, at one daemon.
func TestEngine(t *testing.T) {
	h := newHost(t)
	h.importBusybox(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("DOCKER_HOST", "unix://"+h.socket)
			env.Setenv("DOCKER_CONFIG", env.WorkDir)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("NETNS", filepath.Join(h.dir, "netns"))
			return nil
		},
	})
}
