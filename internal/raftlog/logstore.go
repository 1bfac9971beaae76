package raftlog

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// segmentSize is the log's file size. The log is cut after each snapshot to a
// few hundred entries, so a manager seldom has more than two.
const segmentSize = 8 << 20

// segments are the WAL's files. When entries at its end are dropped the WAL closes
// the last file, but writes no index into it (hashicorp/raft-wal issue 31; the
// release that does needs a go-metrics older than raft's), and cannot read it
// after a restart. Such a file is read through, as the last one is.
type segments struct{ types.SegmentFiler }

func newSegments(dir string) segments { return segments{segment.NewFiler(dir, fs.New())} }

func (s segments) Open(info types.SegmentInfo) (types.SegmentReader, error) {
	if info.IndexStart == 0 {
		return s.RecoverTail(info)
	}
	return s.SegmentFiler.Open(info)
}

// sealedLog is a log store whose entries are sealed. An entry is bound to its
// place: one that is moved does not open.
type sealedLog struct {
	raft.LogStore
	keys *Keys
}

func place(l *raft.Log) []byte {
	b := binary.BigEndian.AppendUint64(nil, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	return append(b, byte(l.Type))
}

// IsMonotonic implements raft.MonotonicLogStore: the WAL takes no gaps.
func (s *sealedLog) IsMonotonic() bool { return true }

func (s *sealedLog) GetLog(index uint64, l *raft.Log) error {
	if err := s.LogStore.GetLog(index, l); err != nil {
		return err
	}
	if len(l.Data) == 0 {
		return nil
	}
	plain, err := s.keys.open(l.Data, place(l))
	if err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	l.Data = plain
	return nil
}

func (s *sealedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *sealedLog) StoreLogs(logs []*raft.Log) error {
	sealed := make([]raft.Log, len(logs))
	out := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sealed[i] = *l // raft goes on using its own
		if len(l.Data) > 0 {
			sealed[i].Data = s.keys.seal(l.Data, place(l))
		}
		out[i] = &sealed[i]
	}
	return s.LogStore.StoreLogs(out)
}
