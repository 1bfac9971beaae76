package machine

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cluster"
)

// Command returns a command that will run inside the machine when started by
// Exec. The machine shares the host's programs.
func (m *Machine) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix:///run/skep/skep.sock", "SKEP_MACHINE="+m.Name, "PS1="+m.Name+`:\w\$ `)
	return cmd
}

// Exec runs cmd inside the machine's namespaces and waits for it.
func (m *Machine) Exec(cmd *exec.Cmd) error {
	if m.State() != Running {
		return cluster.Unavailablef("machine %s is not running; start it with: skep machine start %s", m.Name, m.Name)
	}
	started := make(chan error, 1)
	go func() {
		// Never unlocked: the thread has left this process's namespaces and ends
		// with the goroutine.
		runtime.LockOSThread()
		err := enter(m.Pid)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return cmd.Wait()
}

// enter moves the calling thread into the namespaces of process pid; a child
// that it starts then is inside entirely.
func enter(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A thread that shares its working directory with others may not change
	// its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
}

// ssh runs a command (a shell when there is none) with the caller's terminal.
func (m *Machine) ssh(args []string, in io.Reader, out, errOut io.Writer) error {
	if len(args) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		args = []string{shell}
		if shell == "/bin/bash" {
			args = append(args, "--norc")
		}
	} else if len(args) == 1 {
		args = []string{"/bin/sh", "-c", args[0]} // as ssh does with a quoted line
	}
	cmd := m.Command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, errOut
	return m.Exec(cmd)
}
