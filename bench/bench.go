package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// roots of the two fleets. Fixed, so that the next run finds what a killed one left.
const (
	oursRoot = "/var/lib/skep-bench-ours"
	peerRoot = "/var/lib/skep-bench-peer"
)

// bench is one run of the program: the two sides and what was seen of them.
type bench struct {
	m      measurement
	work   string // what run.sh prepared
	ours   *side
	peer   *side // nil without one
	settle time.Duration
	names  []string // of figures, in the order first recorded
	units  map[string]string
	seen   map[string]map[*side][]float64
	worst  map[string]bool // figures whose worst run counts, not the median
}

func newBench(m measurement) (*bench, error) {
	b := &bench{m: m, units: map[string]string{}, seen: map[string]map[*side][]float64{}, worst: map[string]bool{}}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b.work = filepath.Dir(exe)
	settle, err := envInt("SETTLE", 3)
	if err != nil {
		return nil, err
	}
	b.settle = time.Duration(settle) * time.Second
	if b.m.runs, err = envInt("RUNS", m.runs); err != nil {
		return nil, err
	}
	skep := os.Getenv("SKEP")
	if skep == "" {
		return nil, errors.New("$SKEP names no binary; use: make bench NAME=" + m.name)
	}
	b.ours = &side{name: "skep", root: oursRoot, skep: skep, cli: skep}
	if os.Getenv("PEER") != "no" {
		peer := filepath.Join(b.work, "peer")
		b.peer = &side{name: "docker 20.10", root: peerRoot, skep: skep, cli: filepath.Join(peer, "docker"), daemon: filepath.Join(peer, "dockerd")}
	}
	return b, nil
}

func (b *bench) sides() []*side {
	if b.peer == nil {
		return []*side{b.ours}
	}
	return []*side{b.ours, b.peer}
}

// clear removes every host of both sides.
func (b *bench) clear() error {
	var errs []error
	for _, s := range b.sides() {
		errs = append(errs, s.clear())
	}
	return errors.Join(errs...)
}

// hosts makes n hosts a side.
func (b *bench) hosts(ctx context.Context, n int) error {
	for _, s := range b.sides() {
		if err := s.create(ctx, n); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for _, h := range s.hosts {
			if err := h.load(ctx, filepath.Join(b.work, "image.tar")); err != nil {
				return fmt.Errorf("%s: %s: image: %w", s.name, h.name, err)
			}
		}
	}
	return nil
}

// swarms makes a swarm of n hosts a side; the first managers of them manage.
func (b *bench) swarms(ctx context.Context, n, managers int) error {
	if err := b.hosts(ctx, n); err != nil {
		return err
	}
	for _, s := range b.sides() {
		if err := s.swarm(ctx, managers); err != nil {
			return fmt.Errorf("%s: swarm: %w", s.name, err)
		}
	}
	return nil
}

// each runs do on both sides in turn, the measurement's number of times; every
// other time the peer goes first.
func (b *bench) each(ctx context.Context, do func(run int, s *side) error) error {
	for run := range b.m.runs {
		sides := b.sides()
		if run%2 == 1 {
			slices.Reverse(sides)
		}
		for _, s := range sides {
			if err := b.quiet(ctx); err != nil {
				return err
			}
			if err := do(run, s); err != nil {
				return fmt.Errorf("%s: run %d: %w", s.name, run+1, err)
			}
		}
	}
	return nil
}

// quiet waits, for a while at most, until the machine does little.
func (b *bench) quiet(ctx context.Context) error {
	for end := time.Now().Add(b.settle); time.Now().Before(end); {
		busy, all := cpuTicks()
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		busy2, all2 := cpuTicks()
		if float64(busy2-busy) < 0.15*float64(all2-all) {
			break
		}
	}
	return ctx.Err()
}

// record notes one value of a figure.
func (b *bench) record(s *side, name, unit string, value float64) {
	if b.seen[name] == nil {
		b.names = append(b.names, name)
		b.units[name] = unit
		b.seen[name] = map[*side][]float64{}
	}
	b.seen[name][s] = append(b.seen[name][s], value)
	fmt.Fprintf(os.Stderr, "%s  %-13s %-40s %10.4g %s\n", time.Now().Format(time.TimeOnly), s.name, name, value, unit)
}

// recordWorst notes a value of a figure whose largest value counts.
func (b *bench) recordWorst(s *side, name, unit string, value float64) {
	b.worst[name] = true
	b.record(s, name, unit, value)
}

// value is what a figure comes to.
func (b *bench) value(name string, v []float64) float64 {
	if b.worst[name] {
		return slices.Max(v)
	}
	return median(v)
}

// figure is one line of the result.
type figure struct {
	Name      string   `json:"name"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	Peer      *string  `json:"peer"`
	PeerValue *float64 `json:"peer_value"`
	Ratio     *float64 `json:"ratio"` // value / peer_value
	Runs      int      `json:"runs"`
}

// beside returns what a figure is compared with, nil when with nothing.
func (b *bench) beside(name string) (*side, []float64) {
	for s, v := range b.seen[name] {
		if s != b.ours && len(v) > 0 {
			return s, v
		}
	}
	return nil, nil
}

// print writes a table for people and then a JSON object a figure and line.
func (b *bench) print(out io.Writer, took time.Duration) error {
	w := tabwriter.NewWriter(out, 0, 1, 3, ' ', 0)
	fmt.Fprintf(w, "\n%s (median, min–max)\tSKEP\tPEER\tRATIO\tRUNS\n", b.m.name)
	var lines [][]byte
	for _, name := range b.names {
		ours := b.seen[name][b.ours]
		if len(ours) == 0 {
			continue
		}
		f := figure{Name: name, Value: round(b.value(name, ours)), Unit: b.units[name], Runs: len(ours)}
		peer, ratio := "-", "-"
		if other, theirs := b.beside(name); other != nil {
			v := round(b.value(name, theirs))
			f.Peer, f.PeerValue = &other.name, &v
			peer = spread(theirs)
			if v != 0 {
				r := round(b.value(name, ours) / v)
				f.Ratio = &r
				ratio = fmt.Sprintf("%.3g", r)
			}
		}
		line, err := json.Marshal(f)
		if err != nil {
			return err
		}
		lines = append(lines, line)
		fmt.Fprintf(w, "%s, %s\t%s\t%s\t%s\t%d\n", name, f.Unit, spread(ours), peer, ratio, f.Runs)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "took %s\n\n", took.Round(time.Second))
	for _, l := range lines {
		fmt.Fprintf(out, "%s\n", l)
	}
	return nil
}

func spread(v []float64) string {
	return fmt.Sprintf("%.4g (%.3g–%.3g)", median(v), slices.Min(v), slices.Max(v))
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// round keeps four digits.
func round(v float64) float64 {
	var r float64
	fmt.Sscanf(fmt.Sprintf("%.4g", v), "%g", &r)
	return r
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// await asks again until done says true; it ends after a while with what was awaited.
func await(ctx context.Context, what string, every time.Duration, done func() (bool, error)) error {
	for end := time.Now().Add(2 * time.Minute); ; {
		ok, err := done()
		if ok {
			return nil
		}
		if err == nil && time.Now().After(end) {
			err = errors.New("not after two minutes")
		}
		if err == nil {
			err = pause(ctx, every)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}
