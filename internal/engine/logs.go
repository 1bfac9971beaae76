package engine

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/runtime/stdio"
)

// Logs calls yield for each entry until there is no more, yield returns an
// error, or ctx ends. It reports whether the container has a terminal first, by
// calling head. Following ends with the container's run.
func (e *Engine) Logs(ctx context.Context, ref string, opts LogsOptions, head func(tty bool), yield func(LogEntry) error) error {
	c, err := e.find(ref)
	if err != nil {
		return err
	}
	rec := c.view()
	if rec.HostConfig.LogConfig.Type == logNone {
		return cluster.NotImplementedf("configured logging driver does not support reading")
	}
	if head != nil {
		head(rec.Config.Tty)
	}
	var wakes *stdio.Conn
	if opts.Follow && rec.State.running() {
		// Before the first read, so that nothing slips between. If it fails, the
		// container is ending and the log has all there will be.
		if wakes, err = stdio.Watch(ctx, e.stdio(rec).Socket); err == nil {
			defer wakes.Close()
			stop := context.AfterFunc(ctx, func() { _ = wakes.Close() })
			defer stop()
		}
	}
	log, err := stdio.OpenReader(e.logPath(c.id), opts.Tail)
	if err != nil {
		return err
	}
	defer log.Close()
	for {
		err := readLog(ctx, log, opts, yield)
		if errors.Is(err, errPastUntil) {
			return nil
		}
		if err != nil || wakes == nil || ctx.Err() != nil {
			return err
		}
		if wakes.Wake() != nil {
			_ = wakes.Close()
			wakes = nil // the end: one more look
		}
	}
}

var errPastUntil = errors.New("past until")

// readLog yields what the log has now.
func readLog(ctx context.Context, log *stdio.Reader, opts LogsOptions, yield func(LogEntry) error) error {
	for ctx.Err() == nil {
		entry, err := log.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !opts.Until.IsZero() && entry.Time.After(opts.Until) {
			return errPastUntil
		}
		if entry.Time.Before(opts.Since) || entry.Stream == "stdout" && !opts.Stdout || entry.Stream == "stderr" && !opts.Stderr {
			continue
		}
		out := LogEntry{Time: entry.Time, Stream: entry.Stream, Line: []byte(entry.Text), Partial: !strings.HasSuffix(entry.Text, "\n"), Attrs: entry.Attrs}
		if err := yield(out); err != nil {
			return err
		}
	}
	return nil
}
