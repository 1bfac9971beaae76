// Package cli is the command line: docker/cli's commands as a library, under
// skep's name. It knows the Engine API's client and nothing of the daemon; what
// it can do, every client can. cmd/skep calls it and adds the commands that are
// not about a daemon's API (daemon, machine).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	cliflags "github.com/docker/cli/cli/flags"
	cliversion "github.com/docker/cli/cli/version"
	"github.com/moby/term"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// DefaultHost is where skep finds its daemon when nothing else is said.
const DefaultHost = "unix:///run/skep/skep.sock"

// Faces are the names under which the command line speaks: hints tell the user
// to type the name it was called by.
const (
	FaceSkep   = "skep"
	FaceDocker = "docker"
)

// Invocation is one call of the command line.
type Invocation struct {
	Face    string // FaceSkep or FaceDocker
	Args    []string
	Version string
	Commit  string
	// Extra are commands of the binary that holds the command line.
	Extra []*cobra.Command

	Stdin  io.ReadCloser
	Stdout io.Writer
	Stderr io.Writer
}

// Run runs one command line on the process's own streams and returns its exit code.
func Run(ctx context.Context, face, version, commit string, args []string, extra ...*cobra.Command) int {
	stdin, stdout, stderr := term.StdStreams()
	return Invocation{
		Face: face, Args: args, Version: version, Commit: commit, Extra: extra,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
	}.Run(ctx)
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal os.Signal }

func (signalled) Error() string { return "" }

// Run runs the command line and returns its exit code.
func (inv Invocation) Run(ctx context.Context) int {
	ctx, stop := notifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := inv.run(ctx)
	if err == nil || errdefs.IsCanceled(err) && !errors.As(err, &signalled{}) {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(inv.Stderr, inv.hint(msg))
	}
	return exitCode(err)
}

// notifyContext ends the context at the first of the signals, with it as the
// cause; later ones have their default effect again unless somebody waits for them.
func notifyContext(ctx context.Context, signals ...os.Signal) (context.Context, func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, signals...)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-ctx.Done():
		case sig := <-ch:
			cancel(signalled{sig})
		}
		signal.Stop(ch)
	}()
	return ctx, func() { cancel(nil) }
}

// exitCode is docker's: the status an error carries, 128 plus the signal, or 1.
func exitCode(err error) int {
	var sig signalled
	if errors.As(err, &sig) {
		if s, ok := sig.signal.(syscall.Signal); ok {
			return 128 + int(s)
		}
		return 1
	}
	var st dockercli.StatusError
	if errors.As(err, &st) && st.StatusCode != 0 {
		return st.StatusCode
	}
	return 1
}

func (inv Invocation) run(ctx context.Context) error {
	cliversion.Version, cliversion.GitCommit = inv.Version, inv.Commit
	docker, err := command.NewDockerCli(
		command.WithBaseContext(ctx), command.WithInputStream(inv.Stdin),
		command.WithOutputStream(inv.Stdout), command.WithErrorStream(inv.Stderr),
	)
	if err != nil {
		return err
	}
	logrus.SetOutput(docker.Err())

	root, opts := inv.root(docker)
	top := dockercli.NewTopLevelCommand(root, docker, opts, root.Flags())
	top.SetArgs(inv.Args)
	cmd, args, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	if err := top.Initialize(inv.context(cmd, opts)); err != nil {
		return err
	}
	if err := inv.wrapOutput(cmd, args, docker); err != nil {
		return err
	}
	// A command that does not heed its context's end can still be ended.
	go exitAfterThree(ctx, docker)
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

// exitAfterThree ends the process after two more signals, with the terminal as
// it was.
func exitAfterThree(ctx context.Context, docker command.Streams) {
	<-ctx.Done()
	if !errors.As(context.Cause(ctx), &signalled{}) {
		return
	}
	more := make(chan os.Signal, 2)
	signal.Notify(more, os.Interrupt, syscall.SIGTERM)
	<-more
	<-more
	fmt.Fprint(docker.Err(), "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n")
	docker.In().RestoreTerminal()
	docker.Out().RestoreTerminal()
	docker.Err().RestoreTerminal()
	os.Exit(1)
}

// context is the option that picks the daemon to talk to: what the flags, the
// environment and docker's contexts say, else skep's own socket.
func (inv Invocation) context(cmd *cobra.Command, opts *cliflags.ClientOptions) command.CLIOption {
	return command.WithContextResolver(func(docker *command.DockerCli) (string, error) {
		name, err := cmd.Flags().GetString("context")
		if err != nil || name != "" {
			return name, err
		}
		if docker.CurrentContext() == command.DefaultContextName && len(opts.Hosts) == 0 &&
			opts.TLSOptions == nil && os.Getenv("DOCKER_HOST") == "" {
			opts.Hosts = []string{defaultHost()}
		}
		return "", nil
	})
}

func defaultHost() string {
	if h := os.Getenv("SKEP_HOST"); h != "" {
		return h
	}
	return DefaultHost
}

// root builds the whole tree of commands.
func (inv Invocation) root(docker *command.DockerCli) (*cobra.Command, *cliflags.ClientOptions) {
	root := &cobra.Command{
		Use:              inv.Face + " [OPTIONS] COMMAND [ARG...]",
		Short:            "A swarm of hosts, running containers",
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("%[1]s: unknown command: %[1]s %[2]s\n\nRun '%[1]s --help' for more information", inv.Face, args[0])
		},
		PersistentPreRunE:     func(cmd *cobra.Command, _ []string) error { return supported(cmd, docker) },
		Version:               fmt.Sprintf("%s, build %s", inv.Version, inv.Commit),
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetIn(docker.In())
	root.SetOut(docker.Out())
	root.SetErr(docker.Err())
	opts, _ := dockercli.SetupRootCommand(root)
	root.Annotations["additionalHelp"] = fmt.Sprintf("Run '%s COMMAND --help' for more information on a command.", inv.Face)
	if inv.Face == FaceSkep {
		root.SetVersionTemplate("skep version {{.Version}}\n")
	}
	root.Flags().BoolP("version", "v", false, "Print version information and quit")
	checkFirst(root, docker)
	commands.AddCommands(root, docker)
	root.AddCommand(inv.Extra...)
	plainUse(inv.Extra)
	inv.tidy(root)
	return root, opts
}

// plainUse lets usage lines be shown as they are written, like docker's.
func plainUse(all []*cobra.Command) {
	for _, c := range all {
		c.DisableFlagsInUseLine = true
		plainUse(c.Commands())
	}
}
