package machine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/cluster"
)

// Command returns `skep machine` with its subcommands, for the fleet that
// $SKEP_MACHINES names.
func Command() *cobra.Command {
	top := &cobra.Command{
		Use:   "machine",
		Short: "Make hosts on this machine, to try a swarm on",
		Long: "Each machine is a host of its own (network, processes, /run, /etc, disk) on this one\n" +
			"Linux machine, with a skep daemon inside. $SKEP_MACHINES names the folder of the\n" +
			"fleet (" + DefaultRoot + "); fleets of different folders do not meet.",
	}
	top.AddCommand(createCommand(), lsCommand(), envCommand(), ipCommand(), sshCommand(), inspectCommand(),
		eachCommand("stop", "Shut machines down in order", (*Fleet).Stop),
		eachCommand("start", "Switch stopped machines on again", (*Fleet).Start),
		eachCommand("kill", "Cut the power of machines", (*Fleet).Kill),
		sidesCommand("partition", "Cut machines off from all others", (*Fleet).Partition),
		sidesCommand("heal", "Join machines to the others again", (*Fleet).Heal),
		rmCommand(), bootCommand())
	return top
}

func fleet() (*Fleet, error) {
	return OpenFleet(cmp.Or(os.Getenv("SKEP_MACHINES"), DefaultRoot))
}

func createCommand() *cobra.Command {
	var opts CreateOptions
	c := &cobra.Command{
		Use: "create [OPTIONS] NAME [NAME...]", Short: "Make machines and start them", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := fleet()
			if err != nil {
				return err
			}
			for _, name := range args {
				m, err := f.Create(cmd.Context(), name, opts)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is ready at %s\n", m.Name, m.Addr)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nTo talk to it, run: eval $(skep machine env %s)\n", args[0])
			return nil
		},
	}
	c.Flags().StringVar(&opts.Daemon, "daemon", "", "Program to start in place of skep's daemon; it is given dockerd's flags")
	c.Flags().StringArrayVar(&opts.DaemonArgs, "daemon-arg", nil, "Argument for the daemon inside (may be repeated)")
	return c
}

func lsCommand() *cobra.Command {
	var quiet bool
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List machines", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := fleet()
			if err != nil {
				return err
			}
			ms, err := f.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 10, 1, 3, ' ', 0)
			if !quiet {
				fmt.Fprintln(w, "NAME\tSTATE\tADDRESS\tMEMORY\tDOCKER_HOST")
			}
			for _, m := range ms {
				if quiet {
					fmt.Fprintln(w, m.Name)
					continue
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\tunix://%s\n", m.Name, f.describeState(m), m.Addr, f.describeMemory(m), m.Socket())
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only show names")
	return c
}

func (f *Fleet) describeState(m *Machine) string {
	if m.Side != "" && m.State() == Running {
		return "partitioned"
	}
	return m.State()
}

func (f *Fleet) describeMemory(m *Machine) string {
	n, ok := f.memory(m)
	if !ok || m.State() != Running {
		return "-"
	}
	return units.BytesSize(float64(n))
}

func envCommand() *cobra.Command {
	var unset bool
	c := &cobra.Command{
		Use: "env [OPTIONS] [NAME]", Short: "Print what makes skep and docker talk to a machine", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			if unset {
				fmt.Fprintln(out, "unset DOCKER_HOST SKEP_MACHINE")
				return nil
			}
			if len(args) == 0 {
				return cluster.Invalidf("which machine? Its name is missing; see: skep machine ls")
			}
			f, err := fleet()
			if err != nil {
				return err
			}
			m, err := f.Get(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "export DOCKER_HOST='unix://%s'\nexport SKEP_MACHINE='%s'\n# Run: eval $(skep machine env %s)\n",
				strings.ReplaceAll(m.Socket(), "'", `'\''`), m.Name, m.Name)
			return nil
		},
	}
	c.Flags().BoolVarP(&unset, "unset", "u", false, "Print what takes it back")
	return c
}

// oneCommand makes a subcommand that prints something of one machine.
func oneCommand(use, short string, show func(*cobra.Command, *Fleet, *Machine) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := fleet()
			if err != nil {
				return err
			}
			m, err := f.Get(args[0])
			if err != nil {
				return err
			}
			return show(cmd, f, m)
		},
	}
}

func ipCommand() *cobra.Command {
	return oneCommand("ip", "Print a machine's address", func(cmd *cobra.Command, _ *Fleet, m *Machine) error {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), m.Addr)
		return err
	})
}

func inspectCommand() *cobra.Command {
	return oneCommand("inspect", "Print all about a machine", func(cmd *cobra.Command, f *Fleet, m *Machine) error {
		mem, _ := f.memory(m)
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "    ")
		return e.Encode([]any{struct {
			*Machine
			State, Socket, Log, DataRoot, Bridge, Subnet, Cgroup string
			Memory                                               int64
		}{m, f.describeState(m), m.Socket(), m.LogFile(), m.DataRoot(), f.Bridge, f.Subnet.String(), f.cgroup(m), mem}})
	})
}

// ExitError is the exit code of a command that ran inside a machine.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func sshCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ssh NAME [COMMAND] [ARG...]", Short: "Run a command, or a shell, inside a machine", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := fleet()
			if err != nil {
				return err
			}
			m, err := f.Get(args[0])
			if err != nil {
				return err
			}
			err = m.ssh(args[1:], os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return ExitError(exit.ExitCode())
			}
			return err
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

// rmCommand and its siblings take several machines.
func rmCommand() *cobra.Command {
	var force, all bool
	c := &cobra.Command{
		Use: "rm [OPTIONS] [NAME...]", Short: "Remove machines and their disks",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := fleet()
			if err != nil {
				return err
			}
			if all && force {
				return f.RemoveAll(cmd.Context())
			}
			return each(cmd, args, all, func(f *Fleet, m *Machine) error { return f.Remove(cmd.Context(), m, force) })
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Remove running machines too")
	c.Flags().BoolVar(&all, "all", false, "All machines, and the network between them")
	return c
}

func bootCommand() *cobra.Command {
	c := oneCommand("boot", "", func(_ *cobra.Command, f *Fleet, m *Machine) error {
		if os.Getpid() != 1 {
			return cluster.Invalidf("boot is how a machine starts itself; use: skep machine start %s", m.Name)
		}
		return f.boot(m)
	})
	c.Hidden = true
	return c
}
