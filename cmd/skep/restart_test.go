package main

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// out runs a command and returns what it printed.
func (h *host) out(t *testing.T, args ...string) string {
	t.Helper()
	raw, err := h.docker(args...).Output()
	if err != nil {
		var stderr string
		if e, ok := err.(*exec.ExitError); ok {
			stderr = string(e.Stderr)
		}
		t.Fatalf("docker %s: %v: %s\n%s", strings.Join(args, " "), err, stderr, h.log())
	}
	return strings.TrimSpace(string(raw))
}

// TestDaemonRestart ends the daemon in order and by a kill: its containers go
// on, and the next daemon knows them with their logs, exit codes and policies.
func TestDaemonRestart(t *testing.T) {
	h := newHost(t)
	h.importBusybox(t)
	h.out(t, "run", "-d", "--name", "stays", "busybox:1", "sh", "-c", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done")
	h.out(t, "run", "-d", "--name", "ends", "busybox:1", "sh", "-c", "sleep 2; exit 5")
	h.out(t, "run", "-d", "--name", "again", "--restart", "always", "busybox:1", "sleep", "1000")
	h.out(t, "volume", "create", "kept")
	h.out(t, "network", "create", "mine")
	pid := h.out(t, "inspect", "-f", "{{.State.Pid}}", "stays")
	lines := len(strings.Split(h.out(t, "logs", "stays"), "\n"))

	h.stop(t)
	if err := syscall.Kill(atoi(t, pid), 0); err != nil {
		t.Fatalf("the container ended with the daemon: %v", err)
	}
	h.start(t)
	if got := h.out(t, "inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "stays"); got != pid+" true" {
		t.Errorf("after the restart: %s, before: %s", got, pid)
	}
	until(t, "its log goes on", h.log, func() bool { return len(strings.Split(h.out(t, "logs", "stays"), "\n")) > lines })
	if got := h.out(t, "exec", "stays", "echo", "still here"); got != "still here" {
		t.Errorf("exec: %q", got)
	}
	if got := h.out(t, "wait", "ends"); got != "5" {
		t.Errorf("exit code over a restart: %q", got)
	}
	if got := h.out(t, "volume", "ls", "-q") + " " + h.out(t, "network", "ls", "-q", "--filter", "name=mine"); !strings.HasPrefix(got, "kept ") || len(got) < 10 {
		t.Errorf("volume and network: %q", got)
	}

	// A daemon that is killed leaves its socket and pid file behind, and nobody
	// who restarts what ends.
	before := atoi(t, h.out(t, "inspect", "-f", "{{.State.Pid}}", "again"))
	h.cmd.Process.Kill()
	h.cmd.Wait()
	syscall.Kill(before, syscall.SIGKILL)
	h.start(t)
	until(t, "the policy starts it again", h.log, func() bool {
		now := h.out(t, "inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "again")
		return strings.HasSuffix(now, " true") && atoi(t, strings.Fields(now)[0]) != before
	})
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
