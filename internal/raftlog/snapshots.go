package raftlog

import (
	"bufio"
	"cmp"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/skep-dev/skep/internal/durable"
)

// A snapshot file is a header, then sealed chunks: the first holds the metadata
// as JSON, the others the state. A chunk's nonce is the file's random prefix,
// the chunk's number and whether it is the last, so that none can be moved,
// swapped or cut off unnoticed.
const (
	snapMagic   = "skep-snapshot\x01"
	snapSuffix  = ".snap"
	chunkSize   = 64 << 10
	overhead    = 16
	prefixSize  = 15
	maxSnapMeta = 1 << 20
	headerSize  = len(snapMagic) + 4 + prefixSize + 4 // magic, key, prefix, size of the sealed metadata
)

// snapshots is a raft.SnapshotStore of sealed files in one directory.
type snapshots struct {
	dir  string
	keys *Keys
	old  atomic.Int64 // how many to keep beside the newest
}

func openSnapshots(dir string, keys *Keys, old int) (*snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	stale, _ := filepath.Glob(filepath.Join(dir, "*.new"))
	for _, f := range stale { // of a crash while writing
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	s := &snapshots{dir: dir, keys: keys}
	s.old.Store(int64(old))
	return s, nil
}

func (s *snapshots) path(id string) string { return filepath.Join(s.dir, id+snapSuffix) }

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano())
	meta, err := json.Marshal(raft.SnapshotMeta{
		Version: 1, ID: id, Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex,
	})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path(id)+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	keyID, aead := s.keys.newest()
	k := &sink{store: s, id: id, f: f, w: bufio.NewWriterSize(f, 1<<18), chunks: chunks{aead: aead}}
	rand.Read(k.prefix[:])
	head := append([]byte(snapMagic), binary.BigEndian.AppendUint32(nil, keyID)...)
	head = append(head, k.prefix[:]...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(meta)+overhead))
	if _, err := k.w.Write(head); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	if err := k.chunk(meta, false); err != nil {
		return nil, errors.Join(err, k.Cancel())
	}
	return k, nil
}

// chunks numbers the chunks of one file.
type chunks struct {
	aead   cipher.AEAD
	prefix [prefixSize]byte
	n      uint64
}

func (c *chunks) nonce(last bool) []byte {
	b := append([]byte(nil), c.prefix[:]...)
	b = binary.BigEndian.AppendUint64(b, c.n)
	c.n++
	if last {
		return append(b, 1)
	}
	return append(b, 0)
}

// sink writes one snapshot.
type sink struct {
	chunks
	store *snapshots
	id    string
	f     *os.File
	w     *bufio.Writer
	buf   []byte
	done  bool
}

func (k *sink) ID() string { return k.id }

func (k *sink) chunk(plain []byte, last bool) error {
	_, err := k.w.Write(k.aead.Seal(nil, k.nonce(last), plain, nil))
	return err
}

func (k *sink) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(k.buf) == chunkSize { // more follows: this one is not the last
			if err := k.chunk(k.buf, false); err != nil {
				return 0, err
			}
			k.buf = k.buf[:0]
		}
		m := min(len(p), chunkSize-len(k.buf))
		k.buf = append(k.buf, p[:m]...)
		p = p[m:]
	}
	return n, nil
}

// Close makes the snapshot durable and forgets those that are too old.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	err := k.chunk(k.buf, true)
	err = errors.Join(err, k.w.Flush(), k.f.Sync(), k.f.Close())
	if err == nil {
		err = os.Rename(k.f.Name(), k.store.path(k.id))
	}
	if err != nil {
		return errors.Join(err, os.Remove(k.f.Name()))
	}
	if err := durable.SyncDir(k.store.dir); err != nil {
		return err
	}
	return k.store.reap()
}

func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	return errors.Join(k.f.Close(), os.Remove(k.f.Name()))
}

func (s *snapshots) reap() error {
	metas, err := s.List()
	if err != nil {
		return err
	}
	for _, m := range metas[min(len(metas), 1+int(max(0, s.old.Load()))):] {
		if err := os.Remove(s.path(m.ID)); err != nil {
			return err
		}
	}
	return nil
}

// List implements raft.SnapshotStore: the newest first. A file that does not
// open with our keys is no snapshot of ours and is passed over.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []*raft.SnapshotMeta
	for _, e := range files {
		id, ok := strings.CutSuffix(e.Name(), snapSuffix)
		if !ok {
			continue
		}
		if m, r, err := s.Open(id); err == nil {
			r.Close()
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *raft.SnapshotMeta) int {
		return -cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.Index, b.Index), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Open implements raft.SnapshotStore. The size it reports is the plain text's.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	f, err := os.Open(s.path(id))
	if err != nil {
		return nil, nil, err
	}
	m, r, err := s.read(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("snapshot %s: %w", id, err), f.Close())
	}
	return m, r, nil
}

func (s *snapshots) read(f *os.File) (*raft.SnapshotMeta, *snapReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	r := &snapReader{f: f, r: bufio.NewReaderSize(f, 1<<17)}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r.r, head); err != nil {
		return nil, nil, err
	}
	if string(head[:len(snapMagic)]) != snapMagic {
		return nil, nil, errors.New("not a snapshot of this version")
	}
	rest := head[len(snapMagic):]
	if r.aead, err = s.keys.aead(binary.BigEndian.Uint32(rest)); err != nil {
		return nil, nil, err
	}
	copy(r.prefix[:], rest[4:])
	metaSize := binary.BigEndian.Uint32(rest[4+prefixSize:])
	if metaSize > maxSnapMeta || metaSize < overhead {
		return nil, nil, errors.New("metadata of an impossible size")
	}
	r.left = info.Size() - int64(headerSize) - int64(metaSize)
	if r.left < overhead {
		return nil, nil, io.ErrUnexpectedEOF
	}
	sealed := make([]byte, metaSize)
	if _, err := io.ReadFull(r.r, sealed); err != nil {
		return nil, nil, err
	}
	plain, err := r.aead.Open(nil, r.nonce(false), sealed, nil)
	if err != nil {
		return nil, nil, err
	}
	m := &raft.SnapshotMeta{}
	if err := json.Unmarshal(plain, m); err != nil {
		return nil, nil, err
	}
	full := (r.left + chunkSize + overhead - 1) / (chunkSize + overhead)
	m.Size = r.left - full*overhead
	return m, r, nil
}

// snapReader reads the state of a snapshot.
type snapReader struct {
	chunks
	f    *os.File
	r    *bufio.Reader
	left int64 // sealed bytes not yet read
	buf  []byte
}

func (r *snapReader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		sealed := make([]byte, min(r.left, chunkSize+overhead))
		if _, err := io.ReadFull(r.r, sealed); err != nil {
			return 0, err
		}
		r.left -= int64(len(sealed))
		plain, err := r.aead.Open(sealed[:0], r.nonce(r.left == 0), sealed, nil)
		if err != nil {
			return 0, fmt.Errorf("snapshot: %w", err)
		}
		r.buf = plain
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *snapReader) Close() error { return r.f.Close() }
