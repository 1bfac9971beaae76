package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/internal/httpapi"
	"github.com/skep-dev/skep/internal/version"
	"github.com/skep-dev/skep/internal/whoami"
)

// Command returns `skep daemon`.
func Command() *cobra.Command {
	c := Default()
	cmd := &cobra.Command{
		Use:   "daemon [OPTIONS]",
		Short: "Run containers on this host and take part in a swarm",
		Long: "Serves the Docker Engine API on a socket, runs containers and, once told to, is a\n" +
			"manager or worker of a swarm. Takes dockerd's flags and configuration file: those\n" +
			"without effect here are noted in the log. Each flag can also be given in the\n" +
			"environment, as SKEP_DAEMON_DATA_ROOT for --data-root.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			unused, err := load(cmd.Flags(), &c, os.Getenv)
			if err != nil {
				return err
			}
			if ok, _ := cmd.Flags().GetBool("validate"); ok {
				_, err := io.WriteString(cmd.OutOrStdout(), "configuration OK\n")
				return err
			}
			log := newLog(&c, cmd.ErrOrStderr())
			noteUnused(log, unused)
			return Run(cmd.Context(), c, log)
		},
	}
	addFlags(cmd.Flags(), &c)
	return cmd
}

func newLog(c *Config, w io.Writer) *slog.Logger {
	level, _ := c.level() // validated
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// Run is the daemon: it returns nil once ctx has ended and everything is shut
// down in order, or the error that ended it. Containers go on in both cases.
func Run(ctx context.Context, c Config, log *slog.Logger) (err error) {
	// A terminal that closes must not end the daemon. The signal is caught and
	// not ignored, because containers would inherit that.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	if err := setProxies(&c); err != nil {
		return err
	}
	if err := makeDirs(&c); err != nil {
		return err
	}
	if err := writePid(c.PidFile); err != nil {
		return err
	}
	defer os.Remove(c.PidFile)
	listeners, err := listen(&c, log)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	host, err := hostFacts(&c)
	if err != nil {
		return err
	}

	rooms, err := open(ctx, &c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rooms.close()) }()
	if err := whoami.Ensure(ctx, rooms.images); err != nil {
		log.Warn("skep/whoami is not on this host", "err", err)
	}

	node, err := membership(&c, host, rooms, log)
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return rooms.networks.Run(ctx) })
	group.Go(func() error { return node.Run(ctx) })
	group.Go(func() error { return swarmEvents(node, rooms).Run(ctx) })
	if os.Getenv("GOGC") == "" {
		group.Go(func() error { return tuneHeap(ctx) })
	}
	api := &httpapi.Server{
		Host: host, Log: log.With("room", "httpapi"),
		Containers: rooms.engine, Images: rooms.images, Volumes: rooms.volumes, Networks: rooms.networks,
		Member: node, Control: swarmState(node), Logs: taskLogs{node},
	}
	for _, l := range listeners {
		group.Go(func() error { return api.Serve(ctx, l) })
	}
	log.Info("daemon is ready", "version", version.Version, "hosts", c.Hosts, "data", c.DataRoot)
	if err := notify("READY=1"); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	stopping := context.AfterFunc(ctx, func() {
		log.Info("daemon is shutting down; containers go on")
		notify("STOPPING=1")
	})
	defer stopping()
	return group.Wait()
}
