package raftlog

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// A follower that is told by a new leader to drop its last entries, and loses
// power, must find the others again.
func TestLogSurvivesDroppedSuffix(t *testing.T) {
	keys, err := OpenKeys(filepath.Join(t.TempDir(), "keys"), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	entries := func(s raft.LogStore, from, to, term uint64) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := s.StoreLog(&raft.Log{Index: i, Term: term, Data: fmt.Appendf(nil, "%d of term %d", i, term)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	last := uint64(0)
	for term := uint64(1); term <= 3; term++ {
		meta := &metadb.BoltMetaDB{}
		w, err := wal.Open(dir, wal.WithSegmentSize(segmentSize), wal.WithMetaStore(meta), wal.WithSegmentFiler(newSegments(dir)))
		if err != nil {
			t.Fatal(err)
		}
		s := &sealedLog{LogStore: w, keys: keys}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := s.GetLog(i, &l); err != nil {
				t.Fatalf("term %d, entry %d: %v", term, i, err)
			}
		}
		entries(s, last+1, last+20, term)
		last += 20
		if err := s.DeleteRange(last-4, last); err != nil {
			t.Fatal(err)
		}
		last -= 5
		entries(s, last+1, last+2, term+1)
		last += 2
		var l raft.Log
		if err := s.GetLog(last, &l); err != nil || string(l.Data) != fmt.Sprintf("%d of term %d", last, term+1) {
			t.Fatalf("the last entry is %q, %v", l.Data, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := meta.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
