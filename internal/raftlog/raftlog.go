package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"github.com/skep-dev/skep/internal/store"
)

// Config says how a manager takes part in Raft. ID, Addr, Dir, Keys, Store,
// Listener, Dial and Log are required.
type Config struct {
	ID   string // the node's id
	Addr string // host:port where the other managers reach this one
	Dir  string // for log and snapshots; made if missing
	Keys *Keys
	// Store is changed by the log and by nothing else.
	Store *store.Store
	// Listener and Dial carry Raft's connections. They authenticate both ends as
	// managers of this swarm. The listener is closed at the end.
	Listener net.Listener
	Dial     func(ctx context.Context, addr string) (net.Conn, error)
	Log      *slog.Logger

	// Tick is how long a follower waits for a leader that is silent before it
	// asks for an election (up to three times as long, at random). Default 600 ms:
	// a lost leader is replaced within 2 s, two busy cores do not look like one.
	Tick   time.Duration
	Limits Limits // the first ones; see SetLimits
	// ForceNewCluster makes this manager the only member, whatever the log says.
	ForceNewCluster bool
}

// Limits can be changed at run time (SetLimits).
type Limits struct {
	SnapshotEvery uint64 // log entries between snapshots; default 10,000
	KeepOld       uint64 // snapshots kept beside the newest
	Trailing      uint64 // entries kept behind a snapshot for slow followers; default 500
}

func (l Limits) withDefaults() Limits {
	if l.SnapshotEvery == 0 {
		l.SnapshotEvery = 10000
	}
	if l.Trailing == 0 {
		l.Trailing = 500
	}
	return l
}

// snapshotCheck is how often it is looked whether a snapshot is due.
const snapshotCheck = 5 * time.Second

// cachedEntries is how many of the last log entries are kept in memory, for
// followers that are not far behind. An entry may be large: not too many.
const cachedEntries = 128

// Log is one manager's part in the Raft group. Its methods are safe for
// concurrent use between New and the end of Run.
type Log struct {
	cfg       Config
	raft      *raft.Raft
	transport *transport
	wal       *wal.WAL
	meta      *metadb.BoltMetaDB // the WAL's own; it does not close it
	snaps     *snapshots
	fresh     bool

	leadership chan bool
	since      atomic.Int64 // when this manager's term as leader began, 0: it did not
	proposals  *queue
	down       chan struct{} // closed when Raft has ended
}

// New opens the log, restores the last snapshot and takes part in Raft from now
// on; a fresh manager waits for Bootstrap or for the leader to add it. Run must
// be called next: it answers proposals and cleans up.
func New(cfg Config) (*Log, error) {
	if cfg.Tick == 0 {
		cfg.Tick = 600 * time.Millisecond
	}
	cfg.Limits = cfg.Limits.withDefaults()
	l := &Log{
		cfg: cfg, leadership: make(chan bool, 1),
		proposals: newQueue(), down: make(chan struct{}), meta: &metadb.BoltMetaDB{},
	}
	if err := l.open(); err != nil {
		if l.wal != nil {
			err = errors.Join(err, l.wal.Close())
		}
		err = errors.Join(err, l.meta.Close())
		return nil, fmt.Errorf("raft log: %w", err)
	}
	return l, nil
}

func (l *Log) open() error {
	walDir := filepath.Join(l.cfg.Dir, "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return err
	}
	logger := hclogTo(l.cfg.Log)
	var err error
	if l.wal, err = wal.Open(walDir, wal.WithSegmentSize(segmentSize), wal.WithLogger(logger), wal.WithMetaStore(l.meta), wal.WithSegmentFiler(newSegments(walDir))); err != nil {
		return err
	}
	if l.snaps, err = openSnapshots(filepath.Join(l.cfg.Dir, "snapshots"), l.cfg.Keys, int(l.cfg.Limits.KeepOld)); err != nil {
		return err
	}
	conf := l.raftConfig()
	conf.Logger = logger
	sealed := &sealedLog{LogStore: l.wal, keys: l.cfg.Keys}
	logs, err := raft.NewLogCache(cachedEntries, sealed)
	if err != nil {
		return err
	}
	has, err := raft.HasExistingState(sealed, l.wal, l.snaps)
	if err != nil {
		return err
	}
	l.fresh = !has
	l.transport = newTransport(l.cfg, logger)
	if l.cfg.ForceNewCluster && has {
		alone := raft.Configuration{Servers: []raft.Server{l.self()}}
		scratch := &fsm{store.New(), l.cfg.Log}
		if err := raft.RecoverCluster(conf, scratch, sealed, l.wal, l.snaps, l.transport, alone); err != nil {
			return errors.Join(err, l.transport.Close())
		}
	}
	l.raft, err = raft.NewRaft(conf, &fsm{l.cfg.Store, l.cfg.Log}, logs, l.wal, l.snaps, l.transport)
	if err != nil {
		return errors.Join(err, l.transport.Close())
	}
	return nil
}

func (l *Log) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(l.cfg.ID)
	c.HeartbeatTimeout = l.cfg.Tick
	c.ElectionTimeout = l.cfg.Tick
	c.LeaderLeaseTimeout = l.cfg.Tick
	c.CommitTimeout = max(l.cfg.Tick/15, time.Millisecond)
	c.MaxAppendEntries = 64
	c.BatchApplyCh = false     // frames are our batches
	c.ShutdownOnRemove = false // the daemon stops a demoted manager itself
	c.SnapshotInterval = snapshotCheck
	c.SnapshotThreshold = l.cfg.Limits.SnapshotEvery
	c.TrailingLogs = l.cfg.Limits.Trailing
	c.NoLegacyTelemetry = true
	return c
}

func (l *Log) self() raft.Server {
	return raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(l.cfg.ID), Address: raft.ServerAddress(l.cfg.Addr)}
}

// Fresh reports whether the log was empty when it was opened.
func (l *Log) Fresh() bool { return l.fresh }

// Bootstrap makes this manager the first member of a new group. It is an error
// when the log is not empty.
func (l *Log) Bootstrap() error {
	return l.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{l.self()}}).Error()
}

// Run proposes what is asked for and follows the leadership until ctx ends;
// then it hands leadership over, stops Raft and closes the files.
func (l *Log) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var batcher sync.WaitGroup
	batcher.Go(func() { l.batch(ctx) })
	l.follow(ctx)
	cancel()
	l.handOver()
	err := l.raft.Shutdown().Error()
	close(l.down) // ends what the batcher waits for
	batcher.Wait()
	l.cfg.Store.ForgetObserved()
	return errors.Join(err, l.transport.Close(), l.wal.Close(), l.meta.Close())
}

// follow passes leadership on, once everything logged before it is in the store.
func (l *Log) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			l.announce(false)
			return
		case leads := <-l.raft.LeaderCh():
			l.since.Store(0)
			if leads {
				l.since.Store(time.Now().UnixNano())
			}
			l.cfg.Store.ForgetObserved()
			if leads && l.raft.Barrier(0).Error() != nil {
				continue // lost again; the channel says so next
			}
			leader, _ := l.Leader()
			l.cfg.Log.Info("raft leadership", "leads", leads, "leader", leader)
			l.announce(leads)
		}
	}
}

// announce replaces what has not been read yet.
func (l *Log) announce(leads bool) {
	select {
	case <-l.leadership:
	default:
	}
	l.leadership <- leads
}

// Leadership returns the channel on which this manager's leadership is told:
// true once it leads and its store is current, false when it does no more. A
// second true means that it was lost and won again in between. It has one reader.
func (l *Log) Leadership() <-chan bool { return l.leadership }

// Leading reports whether this manager leads, as far as it knows.
func (l *Log) Leading() bool { return l.raft.State() == raft.Leader }

// Leader returns the id and address of the leader, empty when there is none
// that this manager knows of.
func (l *Log) Leader() (id, addr string) {
	a, i := l.raft.LeaderWithID()
	return string(i), string(a)
}

// SetLimits changes when snapshots are made and how many are kept.
func (l *Log) SetLimits(to Limits) error {
	to = to.withDefaults()
	l.snaps.old.Store(int64(to.KeepOld))
	c := l.raft.ReloadableConfig()
	if c.SnapshotThreshold == to.SnapshotEvery && c.TrailingLogs == to.Trailing {
		return nil
	}
	c.SnapshotThreshold, c.TrailingLogs = to.SnapshotEvery, to.Trailing
	return l.raft.ReloadConfig(c)
}

// Snapshot makes a snapshot now.
func (l *Log) Snapshot() error {
	err := l.wait(l.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// handOver gives leadership to another manager before an orderly stop.
func (l *Log) handOver() {
	if !l.Leading() || l.voters() < 2 {
		return
	}
	if err := l.StepDown(); err != nil {
		l.cfg.Log.Warn("leadership was not handed over", "err", err)
	}
}

// StepDown hands leadership to the manager that is furthest in the log and
// returns when it is gone.
func (l *Log) StepDown() error {
	return l.wait(l.raft.LeadershipTransfer())
}
