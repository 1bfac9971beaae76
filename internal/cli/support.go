package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/docker/cli/cli/command"
	"github.com/moby/moby/client/pkg/versions"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Docker's commands and flags carry annotations that say which API version,
// system or swarm role they need. Here they are checked before a command runs,
// and hidden from help where they do not apply. The daemon is asked only when a
// command or flag has such an annotation, since each asking is a connection.

// daemon is what is known of the daemon that is talked to.
type daemon interface {
	CurrentVersion() string
	ServerInfo() command.ServerInfo
}

// checkFirst makes the annotations be checked before flags, arguments and help.
func checkFirst(root *cobra.Command, d daemon) {
	flagError := root.FlagErrorFunc()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if err := supported(cmd, d); err != nil {
			return err
		}
		return flagError(cmd, err)
	})
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if err := supported(cmd, d); err != nil {
			cmd.Println(err)
			return
		}
		hideUnsupported(cmd, d)
		help(cmd, args)
	})
}

// supported says what of cmd and its flags the daemon cannot do.
func supported(cmd *cobra.Command, d daemon) error {
	for c := cmd; c != nil; c = c.Parent() {
		if v, ok := c.Annotations["version"]; ok && versions.LessThan(d.CurrentVersion(), v) {
			return fmt.Errorf("%s requires API version %s, but the Docker daemon API version is %s", cmd.CommandPath(), v, d.CurrentVersion())
		}
		if v, ok := c.Annotations["ostype"]; ok && d.ServerInfo().OSType != "" && v != d.ServerInfo().OSType {
			return fmt.Errorf("%s is only supported on a Docker daemon running on %s, but the Docker daemon is running on %s", cmd.CommandPath(), v, d.ServerInfo().OSType)
		}
		if _, ok := c.Annotations["experimental"]; ok && !d.ServerInfo().HasExperimental {
			return fmt.Errorf("%s is only supported on a Docker daemon with experimental features enabled", cmd.CommandPath())
		}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			errs = append(errs, flagSupported(f, d))
		}
	})
	return errors.Join(errs...)
}

func flagSupported(f *pflag.Flag, d daemon) error {
	if v := annotation(f, "version"); v != "" && versions.LessThan(d.CurrentVersion(), v) {
		return fmt.Errorf(`"--%s" requires API version %s, but the Docker daemon API version is %s`, f.Name, v, d.CurrentVersion())
	}
	if v := annotation(f, "ostype"); v != "" && d.ServerInfo().OSType != "" && v != d.ServerInfo().OSType {
		return fmt.Errorf(`"--%s" is only supported on a Docker daemon running on %s, but the Docker daemon is running on %s`, f.Name, v, d.ServerInfo().OSType)
	}
	if _, ok := f.Annotations["experimental"]; ok && !d.ServerInfo().HasExperimental {
		return fmt.Errorf(`"--%s" is only supported on a Docker daemon with experimental features enabled`, f.Name)
	}
	return nil
}

func annotation(f *pflag.Flag, key string) string {
	if v := f.Annotations[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// hideUnsupported takes what the daemon cannot do out of cmd's help.
func hideUnsupported(cmd *cobra.Command, d daemon) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if cmds, ok := f.Annotations["top-level"]; ok && cmd.Parent() != nil {
			f.Hidden = !within(cmd, cmds)
		}
		for key, values := range f.Annotations {
			v := ""
			if len(values) > 0 {
				v = values[0]
			}
			f.Hidden = f.Hidden || lacks(d, key, v)
		}
	})
	for _, sub := range cmd.Commands() {
		for key, v := range sub.Annotations {
			sub.Hidden = sub.Hidden || lacks(d, key, v)
		}
	}
}

// lacks reports whether the daemon fails an annotation.
func lacks(d daemon, key, value string) bool {
	switch key {
	case "experimental":
		return !d.ServerInfo().HasExperimental
	case "ostype":
		return d.ServerInfo().OSType != "" && value != d.ServerInfo().OSType
	case "version":
		return versions.LessThan(d.CurrentVersion(), value)
	case "swarm":
		st := d.ServerInfo().SwarmStatus
		switch {
		case st == nil:
			return false
		case value == "manager":
			return !st.ControlAvailable
		case value == "active":
			return st.NodeState == "inactive"
		}
	}
	return false
}

// within reports whether cmd or one above it is in the list.
func within(cmd *cobra.Command, names []string) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if slices.Contains(names, cmd.Name()) {
			return true
		}
	}
	return false
}
