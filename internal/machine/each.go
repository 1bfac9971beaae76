package machine

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/cluster"
)

// each runs do on the named machines (or all) and prints the name of each that
// is done. The first error ends it.
func each(cmd *cobra.Command, args []string, all bool, do func(*Fleet, *Machine) error) error {
	f, err := fleet()
	if err != nil {
		return err
	}
	if len(args) == 0 && !all {
		return cluster.Invalidf("which machine? Name at least one, or use --all; see: skep machine ls")
	}
	ms, err := f.names(args, all)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if err := do(f, m); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), m.Name)
	}
	return nil
}

func eachCommand(verb, short string, do func(*Fleet, context.Context, *Machine) error) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: verb + " [OPTIONS] [NAME...]", Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			return each(cmd, args, all, func(f *Fleet, m *Machine) error { return do(f, cmd.Context(), m) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "All machines")
	return c
}

// sidesCommand makes partition and heal, which take their machines as one group.
func sidesCommand(verb, short string, do func(*Fleet, []*Machine) error) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: verb + " NAME [NAME...]", Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			var group []*Machine
			err := each(cmd, args, all || verb == "heal" && len(args) == 0, func(_ *Fleet, m *Machine) error {
				group = append(group, m)
				return nil
			})
			if err != nil || len(group) == 0 {
				return err
			}
			f, err := fleet()
			if err != nil {
				return err
			}
			return do(f, group)
		},
	}
	if verb == "heal" {
		c.Use = verb + " [NAME...]"
	}
	return c
}
