// Package layers is the containerd that lives in the daemon's process: content,
// image names, snapshots, leases and their garbage collection, behind
// containerd's own client. It builds them from containerd's libraries directly,
// without its plugin registry, daemon, sockets or task service: skep drives
// shims itself (see engine/shims). It never runs a container. engine opens it;
// image shares its client.
package layers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	bolt "go.etcd.io/bbolt"
)

// The snapshotters a host can have. Native copies whole layers and serves where
// the data root's file system cannot carry overlayfs.
const (
	Overlay = "overlayfs"
	Native  = "native"
)

// Config says where the layers live.
type Config struct {
	// Root is the directory of all of it.
	Root string
	// Address, if set, is the socket of an existing containerd, which is then
	// used in place of one in this process.
	Address string
	// Namespace is containerd's, "skep" if empty.
	Namespace string
	Log       *slog.Logger
}

// Store is an open containerd.
type Store struct {
	Client *containerd.Client
	// Snapshotter is the name of the one to use.
	Snapshotter string
	Namespace   string

	db    *metadata.DB
	snaps map[string]snapshots.Snapshotter
	kick  chan struct{}
	stop  context.CancelFunc
	done  chan struct{}
	log   *slog.Logger
}

// Open opens the stores under cfg.Root, or connects to cfg.Address. The caller
// closes what it returns.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Namespace == "" {
		cfg.Namespace = "skep"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// containerd's libraries log through a global of their own; what matters of it
	// comes back as errors.
	if err := log.SetLevel("fatal"); err != nil {
		return nil, err
	}
	if cfg.Address != "" {
		c, err := containerd.New(cfg.Address, containerd.WithDefaultNamespace(cfg.Namespace), containerd.WithTimeout(5*time.Second))
		if err != nil {
			return nil, fmt.Errorf("containerd at %s: %w", cfg.Address, err)
		}
		return &Store{Client: c, Snapshotter: Overlay, Namespace: cfg.Namespace, log: cfg.Log}, nil
	}
	s := &Store{Namespace: cfg.Namespace, log: cfg.Log, kick: make(chan struct{}, 1), done: make(chan struct{})}
	if err := s.open(ctx, cfg); err != nil {
		return nil, fmt.Errorf("image store %s: %w", cfg.Root, err)
	}
	gcCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go s.collect(namespaces.WithNamespace(gcCtx, cfg.Namespace))
	return s, nil
}

func (s *Store) open(ctx context.Context, cfg Config) (err error) {
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		return err
	}
	blobs, err := local.NewStore(filepath.Join(cfg.Root, "content"))
	if err != nil {
		return err
	}
	if err := s.openSnapshotters(cfg.Root); err != nil {
		return err
	}
	opts := *bolt.DefaultOptions
	opts.Timeout = 5 * time.Second // a second daemon on the same data root
	opts.NoFreelistSync = true
	opts.NoStatistics = true
	db, err := bolt.Open(filepath.Join(cfg.Root, "meta.db"), 0o600, &opts)
	if err != nil {
		return err
	}
	// Now that no other daemon can be at work here: what one that died left. A
	// snapshot whose making was cut off has left its directory, and the next is to
	// be given its number.
	if err := errors.Join(unmountLeft(cfg.Root), s.clean(ctx)); err != nil {
		return errors.Join(err, db.Close())
	}
	bus := exchange.NewExchange()
	s.db = metadata.NewDB(db, blobs, s.snaps, metadata.WithEventsPublisher(bus))
	if err := s.db.Init(ctx); err != nil {
		return errors.Join(err, db.Close())
	}
	s.db.RegisterMutationCallback(s.mutated)

	services := []containerd.ServicesOpt{
		containerd.WithContentStore(s.db.ContentStore()),
		containerd.WithImageStore(metadata.NewImageStore(s.db)),
		containerd.WithContainerStore(metadata.NewContainerStore(s.db)),
		containerd.WithSnapshotters(s.db.Snapshotters()),
		containerd.WithLeasesService(metadata.NewLeaseManager(s.db)),
		containerd.WithNamespaceService(nsStore{s.db}),
		containerd.WithDiffService(newDiffer(s.db.ContentStore())),
		containerd.WithEventService(bus),
		containerd.WithIntrospectionService(introspector{s.snaps}),
	}
	s.Client, err = containerd.New("", containerd.WithServices(services...), containerd.WithDefaultNamespace(cfg.Namespace))
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	return s.ensureNamespace(ctx)
}

// openSnapshotters opens overlayfs where the file system can carry it, and
// always native.
func (s *Store) openSnapshotters(root string) error {
	s.snaps = map[string]snapshots.Snapshotter{}
	dir := filepath.Join(root, Overlay)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := overlayutils.Supported(dir); err != nil {
		s.log.Warn("overlayfs cannot be used here; containers get copies of their image", "dir", dir, "err", err)
		sn, err := native.NewSnapshotter(filepath.Join(root, Native))
		if err != nil {
			return err
		}
		s.snaps[Native], s.Snapshotter = sn, Native
		return nil
	}
	opts := []overlay.Opt{overlay.AsynchronousRemove}
	if ok, err := overlayutils.NeedsUserXAttr(dir); err == nil && ok {
		opts = append(opts, overlay.WithMountOptions([]string{"userxattr"}))
	}
	sn, err := overlay.NewSnapshotter(dir, opts...)
	if err != nil {
		return err
	}
	s.snaps[Overlay], s.Snapshotter = sn, Overlay
	return nil
}

// Close waits for a collection that is under way and closes the stores.
func (s *Store) Close() error {
	err := s.Client.Close()
	if s.db == nil {
		return err
	}
	s.stop()
	<-s.done
	for _, sn := range s.snaps {
		if c, ok := sn.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
	}
	return errors.Join(err, s.db.Close())
}

// quiet is how long nothing must have changed before garbage is collected: a
// removal is seldom alone.
const quiet = 2 * time.Second

// mutated is called after each write; deleted says whether there is garbage.
func (s *Store) mutated(deleted bool) {
	if !deleted {
		return
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *Store) collect(ctx context.Context) {
	defer close(s.done)
	timer := time.NewTimer(quiet) // the first pass takes what an earlier process left
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
			timer.Reset(quiet)
		case <-timer.C:
			if err := s.Collect(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("garbage of the image store was not collected", "err", err)
			}
		}
	}
}

// Collect removes content and snapshots that nothing refers to, now.
func (s *Store) Collect(ctx context.Context) error {
	if s.db == nil {
		return nil // an external containerd sees to it
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return err
	}
	return s.clean(ctx)
}

// clean removes the directories that belong to no snapshot.
func (s *Store) clean(ctx context.Context) error {
	for _, sn := range s.snaps {
		if c, ok := sn.(snapshots.Cleaner); ok {
			// A store without a snapshot yet has no bucket to look in.
			if err := c.Cleanup(ctx); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// unmountLeft undoes the mounts that a daemon on the same root died in the midst
// of using: containerd's libraries mount layers they unpack or look into below the
// host's directory for temporary files, and nobody else would unmount them.
func unmountLeft(root string) error {
	left, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		ours := strings.HasPrefix(filepath.Base(m.Mountpoint), "containerd-mount") && strings.Contains(m.VFSOptions, root+"/")
		return !ours, false
	})
	errs := []error{err}
	for _, m := range left {
		if err := mount.UnmountAll(m.Mountpoint, 0); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(m.Mountpoint))
	}
	return errors.Join(errs...)
}

func newDiffer(cs content.Store) containerd.DiffService {
	return struct {
		diff.Comparer
		diff.Applier
	}{walking.NewWalkingDiff(cs), apply.NewFileSystemApplier(cs)}
}
