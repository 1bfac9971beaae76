package raftlog

import (
	"encoding/binary"
	"io"
	"log/slog"

	"github.com/hashicorp/raft"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/store"
)

// A log entry of Raft's is a frame: entries of the store's that were proposed
// at about the same time, each made or refused by itself.
const (
	frameFormat = 1
	maxFrame    = 256 << 10 // bytes, unless one entry alone is larger
	maxInFrame  = 512       // entries
)

func encodeFrame(entries [][]byte) []byte {
	size := 16
	for _, e := range entries {
		size += len(e) + binary.MaxVarintLen32
	}
	b := append(make([]byte, 0, size), frameFormat)
	for _, e := range entries {
		b = binary.AppendUvarint(b, uint64(len(e)))
		b = append(b, e...)
	}
	return b
}

// decodeFrame calls f with each entry. It may be given anything.
func decodeFrame(b []byte, f func(entry []byte)) error {
	if len(b) == 0 || b[0] != frameFormat {
		return cluster.Invalidf("a frame of an unknown format")
	}
	for b = b[1:]; len(b) > 0; {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return cluster.Invalidf("a frame that is cut off")
		}
		f(b[n : n+int(size)])
		b = b[n+int(size):]
	}
	return nil
}

// fsm applies frames to the store. The store's entries are numbered one by one,
// in the order of the log: the number is an object's version.
type fsm struct {
	store *store.Store
	log   *slog.Logger
}

// Apply implements raft.FSM; it returns one error (or nil) an entry.
func (f *fsm) Apply(l *raft.Log) any {
	var entries []store.Entry
	var unread []error // an entry, nil where it was read
	err := decodeFrame(l.Data, func(b []byte) {
		e, err := store.DecodeEntry(b)
		if err != nil {
			// Every manager passes over the same entries: they stay alike.
			f.log.Error("a log entry cannot be read", "index", l.Index, "err", err)
		} else {
			entries = append(entries, e)
		}
		unread = append(unread, err)
	})
	if err != nil {
		f.log.Error("a log entry cannot be read", "index", l.Index, "err", err)
		return []error{err}
	}
	applied := f.store.ApplyAll(entries)
	for i, err := range unread {
		if err == nil {
			unread[i], applied = applied[0], applied[1:]
		}
	}
	return unread
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return frozen{f.store.Freeze()}, nil }

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	return f.store.Restore(r)
}

type frozen struct{ store.Frozen }

// Persist implements raft.FSMSnapshot.
func (f frozen) Persist(sink raft.SnapshotSink) error {
	if err := f.Write(sink); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (frozen) Release() {}
