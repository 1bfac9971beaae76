// Package volume keeps a host's local volumes: named directories under the data
// root, with their labels and mount options. It never knows of containers except
// by the ids that hold a volume. engine and httpapi call it.
package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/durable"
)

// Anonymous is the label of a volume that was made without a name.
const Anonymous = "com.docker.volume.anonymous"

// Config is what New makes a Store from.
type Config struct {
	// Root is the directory that holds one directory a volume, as Docker lays
	// them out: NAME/_data is the data, NAME/volume.json the rest.
	Root string
	// Holders returns the ids of the containers, running or not, that refer to
	// a volume. Those that have it mounted are known without it.
	Holders func(name string) []string
	// Publish hears of what happens to volumes; *engine.Engine's has this form.
	Publish func(typ events.Type, action events.Action, actor events.Actor)
	Log     *slog.Logger
}

// Store is the volumes of one daemon. What a volume is stands on disk alone;
// only who has it mounted is held in memory.
type Store struct {
	root    string
	holders func(string) []string
	publish func(events.Type, events.Action, events.Actor)
	log     *slog.Logger

	mu    sync.Mutex
	using map[string]map[string]bool // volume to the holders it is mounted for; guarded by mu
	busy  map[string]*turns          // of the volumes that somebody changes or waits to; guarded by mu
}

// turns lets one after the other change a volume.
type turns struct {
	held chan struct{} // capacity 1
	want int           // who has it and who waits for it; guarded by the Store's mu
}

// New opens the volumes under cfg.Root and finishes removals that were cut off.
func New(cfg Config) (*Store, error) {
	s := &Store{
		root: cfg.Root, holders: cfg.Holders, publish: cfg.Publish, log: cfg.Log,
		using: map[string]map[string]bool{}, busy: map[string]*turns{},
	}
	if s.holders == nil {
		s.holders = func(string) []string { return nil }
	}
	if s.publish == nil {
		s.publish = func(events.Type, events.Action, events.Actor) {}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(s.root, 0o701); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(s.root, ".*"))
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("volumes: %w", err)
		}
	}
	return s, nil
}

// record is a volume's volume.json.
type record struct {
	Name    string
	Created time.Time
	Labels  map[string]string
	Options map[string]string
}

func (s *Store) dir(name string) string  { return filepath.Join(s.root, name) }
func (s *Store) data(name string) string { return filepath.Join(s.root, name, "_data") }

func (s *Store) read(name string) (record, error) {
	var r record
	if !validName.MatchString(name) || len(name) > 255 {
		return r, fs.ErrNotExist
	}
	raw, err := os.ReadFile(filepath.Join(s.dir(name), "volume.json"))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("volume %q: %w", name, err)
	}
	r.Name = name
	return r, nil
}

func (s *Store) api(r record) volume.Volume {
	return volume.Volume{
		Name: r.Name, Driver: "local", Scope: "local", Mountpoint: s.data(r.Name),
		CreatedAt: r.Created.Format(time.RFC3339), Labels: r.Labels, Options: r.Options,
	}
}

// lock waits until nobody else changes the volume.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	s.mu.Lock()
	t := s.busy[name]
	if t == nil {
		t = &turns{held: make(chan struct{}, 1)}
		s.busy[name] = t
	}
	t.want++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.want--; t.want == 0 {
			delete(s.busy, name)
		}
	}
	select {
	case t.held <- struct{}{}:
		return func() { <-t.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkName(name string) error {
	if len(name) == 1 {
		return cluster.Invalidf("create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	}
	if !validName.MatchString(name) {
		return cluster.Invalidf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	}
	if len(name) > 255 {
		return cluster.Invalidf("create %s: volume name is too long", name)
	}
	return nil
}

// Create makes a volume, or returns the one of that name. An empty name makes an
// anonymous one.
func (s *Store) Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error) {
	labels := req.Labels
	name := req.Name
	if name == "" {
		name = fmt.Sprintf("%x", cluster.RandomBytes(32))
		labels = withLabel(labels, Anonymous)
	}
	if err := checkName(name); err != nil {
		return volume.Volume{}, err
	}
	if req.ClusterVolumeSpec != nil {
		return volume.Volume{}, cluster.NotImplementedf("create %s: cluster volumes are not supported yet", name)
	}
	if req.Driver != "" && req.Driver != "local" && req.Driver != "default" {
		return volume.Volume{}, cluster.NotFoundf("create %s: error looking up volume plugin %s: plugin %q not found", name, req.Driver, req.Driver)
	}
	if err := checkOptions(req.DriverOpts); err != nil {
		return volume.Volume{}, cluster.Invalidf("create %s: %v", name, err)
	}
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return volume.Volume{}, err
	}
	defer unlock()
	if r, err := s.read(name); err == nil {
		return s.api(r), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return volume.Volume{}, err
	}
	r := record{Name: name, Created: time.Now(), Labels: labels, Options: req.DriverOpts}
	if err := s.write(r); err != nil {
		return volume.Volume{}, fmt.Errorf("create %s: %w", name, err)
	}
	s.event(events.ActionCreate, name, nil)
	return s.api(r), nil
}

func withLabel(labels map[string]string, key string) map[string]string {
	all := map[string]string{key: ""}
	for k, v := range labels {
		all[k] = v
	}
	return all
}

// write makes the whole directory aside and moves it into its place.
func (s *Store) write(r record) error {
	tmp, err := os.MkdirTemp(s.root, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o701); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(tmp, "_data"), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(tmp, "volume.json"), raw); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.dir(r.Name)); err != nil {
		return err
	}
	return durable.SyncDir(s.root)
}

func (s *Store) event(action events.Action, name string, more map[string]string) {
	attrs := map[string]string{"driver": "local"}
	for k, v := range more {
		attrs[k] = v
	}
	s.publish(events.VolumeEventType, action, events.Actor{ID: name, Attributes: attrs})
}

// Inspect returns a volume; an unknown one is errdefs.ErrNotFound.
func (s *Store) Inspect(ctx context.Context, name string) (volume.Volume, error) {
	r, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return volume.Volume{}, cluster.NotFoundf("get %s: no such volume", name)
	}
	if err != nil {
		return volume.Volume{}, err
	}
	return s.api(r), nil
}

// all returns every volume's record, by name. What cannot be read is a warning.
func (s *Store) all() (list []record, warnings []string, err error) {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		r, err := s.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			warnings = append(warnings, err.Error())
			continue
		}
		list = append(list, r)
	}
	return list, warnings, nil
}

// List returns the volumes that pass the filters.
func (s *Store) List(ctx context.Context, filters map[string]map[string]bool) (volume.ListResponse, error) {
	pass, err := s.filter(filters, "dangling", "driver", "label", "name")
	if err != nil {
		return volume.ListResponse{}, err
	}
	all, warnings, err := s.all()
	if err != nil {
		return volume.ListResponse{}, err
	}
	resp := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: warnings}
	for _, r := range all {
		if pass(r) {
			resp.Volumes = append(resp.Volumes, s.api(r))
		}
	}
	return resp, nil
}

// users returns who holds a volume: containers that refer to it, and whoever
// has it mounted.
func (s *Store) users(name string) []string {
	ids := slices.Clone(s.holders(name))
	s.mu.Lock()
	for id := range s.using[name] {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Remove removes a volume that no container holds. With force an unknown one is
// no error.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		if force {
			return nil
		}
		return cluster.NotFoundf("get %s: no such volume", name)
	}
	if err != nil {
		return err
	}
	return s.remove(r)
}

// remove takes away an unheld volume; the caller has it locked.
func (s *Store) remove(r record) error {
	if ids := s.users(r.Name); len(ids) > 0 {
		return cluster.Conflictf("remove %s: volume is in use - [%s]", r.Name, strings.Join(ids, ", "))
	}
	if err := unmount(s.data(r.Name)); err != nil {
		return fmt.Errorf("remove %s: %w", r.Name, err)
	}
	gone := filepath.Join(s.root, fmt.Sprintf(".gone-%x", cluster.RandomBytes(8)))
	if err := os.Rename(s.dir(r.Name), gone); err != nil {
		return fmt.Errorf("remove %s: %w", r.Name, err)
	}
	s.event(events.ActionDestroy, r.Name, nil)
	if err := os.RemoveAll(gone); err != nil {
		s.log.Warn("data of a removed volume stays until the next start", "volume", r.Name, "err", err)
	}
	return nil
}

// Prune removes the unused volumes that pass the filters (label, label! and all):
// anonymous ones, or with all=true every one.
func (s *Store) Prune(ctx context.Context, filters map[string]map[string]bool) (volume.PruneReport, error) {
	pass, err := s.filter(filters, "label", "label!", "all")
	if err != nil {
		return volume.PruneReport{}, err
	}
	records, _, err := s.all()
	if err != nil {
		return volume.PruneReport{}, err
	}
	every := filters["all"]["true"] || filters["all"]["1"]
	report := volume.PruneReport{VolumesDeleted: []string{}}
	for _, r := range records {
		if _, anonymous := r.Labels[Anonymous]; !anonymous && !every || !pass(r) || len(s.users(r.Name)) > 0 {
			continue
		}
		size := sizeOf(s.data(r.Name))
		err := s.Remove(ctx, r.Name, true)
		switch {
		case errdefs.IsConflict(err): // somebody was quicker
		case err != nil:
			return report, err
		default:
			report.VolumesDeleted = append(report.VolumesDeleted, r.Name)
			report.SpaceReclaimed += size
		}
	}
	s.publish(events.VolumeEventType, events.ActionPrune, events.Actor{Attributes: map[string]string{"reclaimed": fmt.Sprint(report.SpaceReclaimed)}})
	return report, nil
}

func sizeOf(dir string) (total uint64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if i, err := d.Info(); err == nil {
				total += uint64(i.Size())
			}
		}
		return nil
	})
	return total
}
