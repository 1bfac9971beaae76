package store

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/skep-dev/skep/internal/cluster"
)

// A snapshot is the magic, then records: a length as a varint and that many
// bytes of CBOR. The first record is the header, the last one (recordEnd) says
// how many there are, so that a cut file is noticed.
const (
	snapshotMagic = "skep-state\x01"
	maxRecord     = MaxEntry
	recordHeader  = 100
	recordSpec    = 101
	recordEnd     = 102
)

// record is one object of a snapshot.
type record struct {
	Kind   Kind      `cbor:"1,keyasint"`
	ID     packedID  `cbor:"2,keyasint"`
	Number uint64    `cbor:"3,keyasint,omitempty"` // header: index; spec: version; end: records before
	Task   *wireTask `cbor:"4,keyasint,omitempty"`
	Object []byte    `cbor:"5,keyasint,omitempty"` // JSON
}

// Snapshot writes all tables (nothing soft) as they are now.
func (s *Store) Snapshot(w io.Writer) error { return s.Freeze().Write(w) }

// Frozen is the state of a store at one moment, to be written later.
type Frozen struct{ t *tables }

// Freeze returns the state as it is now. It costs nothing.
func (s *Store) Freeze() Frozen { return Frozen{s.cur.Load()} }

// Write writes a snapshot.
func (f Frozen) Write(w io.Writer) error {
	sw := &snapshotWriter{w: bufio.NewWriterSize(w, 1<<16)}
	t := f.t
	sw.raw([]byte(snapshotMagic))
	sw.put(record{Kind: recordHeader, Number: t.index})
	if t.cluster != nil {
		sw.object(KindCluster, t.cluster.ID, t.cluster)
	}
	for _, o := range t.Nodes() {
		n := *o
		if h, soft := t.hiddenNodes.bt.Get(hidden[cluster.NodeStatus]{id: o.ID}); soft {
			n.Status = h.logged
		}
		sw.object(KindNode, o.ID, &n)
	}
	for _, o := range t.Services() {
		sw.object(KindService, o.ID, o)
	}
	t.specs.bt.Ascend(func(sp *spec) bool {
		svc := t.Service(sp.ServiceID)
		if svc == nil || svc.SpecVersion != sp.Version && svc.PrevVersion != sp.Version {
			sw.spec(sp)
		}
		return sw.err == nil
	})
	t.tasks.bt.Ascend(func(o *cluster.Task) bool {
		w := wireTaskOf(o)
		if h, soft := t.hiddenTasks.bt.Get(hidden[cluster.Status]{id: o.ID}); soft {
			w.Status = wireStatusOf(&h.logged)
		}
		w.Version, w.Wants, w.Created, w.Updated = o.Version, o.Wants, nanos(o.CreatedAt), nanos(o.UpdatedAt)
		sw.put(record{Kind: KindTask, ID: packedID(o.ID), Task: w})
		return sw.err == nil
	})
	for _, o := range t.Networks() {
		sw.object(KindNetwork, o.ID, o)
	}
	for _, o := range t.Secrets() {
		sw.object(KindSecret, o.ID, o)
	}
	for _, o := range t.Configs() {
		sw.object(KindConfig, o.ID, o)
	}
	sw.put(record{Kind: recordEnd, Number: sw.n})
	if sw.err != nil {
		return fmt.Errorf("snapshot: %w", sw.err)
	}
	return sw.w.Flush()
}

type snapshotWriter struct {
	w   *bufio.Writer
	n   uint64
	err error
}

func (s *snapshotWriter) raw(b []byte) {
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
}

func (s *snapshotWriter) put(r record) {
	b, err := encMode.Marshal(r)
	if s.err == nil {
		s.err = err
	}
	if s.err == nil && len(b) > maxRecord {
		s.err = fmt.Errorf("the object %s has %d bytes", r.ID, len(b))
	}
	s.raw(binary.AppendUvarint(nil, uint64(len(b))))
	s.raw(b)
	s.n++
}

func (s *snapshotWriter) object(k Kind, id string, obj any) {
	b, err := json.Marshal(obj)
	if s.err == nil {
		s.err = err
	}
	s.put(record{Kind: k, ID: packedID(id), Object: b})
}

func (s *snapshotWriter) spec(sp *spec) {
	b, err := json.Marshal(sp.Spec)
	if s.err == nil {
		s.err = err
	}
	s.put(record{Kind: recordSpec, ID: packedID(sp.ServiceID), Number: sp.Version, Object: b})
}

// Restore replaces all tables by a snapshot. A reader that does not hold a
// whole one is refused and changes nothing.
func (s *Store) Restore(r io.Reader) error {
	t, err := readSnapshot(bufio.NewReaderSize(r, 1<<16))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur.Store(t)
	s.wake(everyKind)
	return nil
}

func readSnapshot(r *bufio.Reader) (*tables, error) {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, err
	}
	if string(magic) != snapshotMagic {
		return nil, errors.New("not a snapshot of this version")
	}
	x := &tx{tables: *newTables()}
	for n := uint64(0); ; n++ {
		rec, err := readRecord(r)
		if err != nil {
			return nil, err
		}
		if (n == 0) != (rec.Kind == recordHeader) {
			return nil, errors.New("the header is not where it should be")
		}
		if rec.Kind == recordEnd {
			if rec.Number != n {
				return nil, fmt.Errorf("%d records where %d were written", n, rec.Number)
			}
			x.settleSpecs()
			return &x.tables, nil
		}
		if err := x.load(rec); err != nil {
			return nil, err
		}
	}
}

func readRecord(r *bufio.Reader) (*record, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, noEOF(err)
	}
	if size > maxRecord {
		return nil, fmt.Errorf("a record of %d bytes", size)
	}
	// Grow with what arrives: a length is only a claim.
	b, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, err
	}
	if uint64(len(b)) != size {
		return nil, io.ErrUnexpectedEOF
	}
	rec := &record{}
	return rec, decMode.Unmarshal(b, rec)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// load puts one record into the tables, as it is.
func (x *tx) load(rec *record) error {
	id := string(rec.ID)
	switch rec.Kind {
	case recordHeader:
		x.index = rec.Number
		return nil
	case KindCluster:
		x.cluster = &cluster.Cluster{}
		return json.Unmarshal(rec.Object, x.cluster)
	case KindNode:
		return load(x, &x.nodes, rec, nodeTable)
	case KindService:
		if err := load(x, &x.services, rec, serviceTable); err != nil {
			return err
		}
		o := x.Service(id)
		if o.Spec == nil {
			return fmt.Errorf("service %s has no spec", id)
		}
		x.ref(id, o.SpecVersion, o.Spec, 1)
		x.ref(id, o.PrevVersion, o.Previous, 1)
		return nil
	case recordSpec:
		sp := specKey(id, rec.Number)
		if err := json.Unmarshal(rec.Object, &sp.Spec); err != nil {
			return err
		}
		x.ref(id, rec.Number, sp.Spec, 0)
		return nil
	case KindTask:
		if rec.Task == nil || id == "" {
			return errors.New("a task without an id or content")
		}
		t, err := rec.Task.task(id)
		if err != nil {
			return err
		}
		if t.ServiceID != "" && !x.hasSpec(t.ServiceID, t.SpecVersion) {
			return fmt.Errorf("task %s runs a spec that is not there", id)
		}
		x.ref(t.ServiceID, t.SpecVersion, nil, 1)
		x.putTask(0, x.Task(id), t)
		return nil
	case KindNetwork:
		return load(x, &x.networks, rec, networkTable)
	case KindSecret:
		return load(x, &x.secrets, rec, secretTable)
	case KindConfig:
		return load(x, &x.configs, rec, configTable)
	}
	return fmt.Errorf("a record of the unknown kind %d", rec.Kind)
}

func load[T any](x *tx, tab *objects[T], rec *record, d table[T]) error {
	obj := new(T)
	if err := json.Unmarshal(rec.Object, obj); err != nil {
		return err
	}
	if d.id(obj) == "" || d.id(obj) != string(rec.ID) {
		return fmt.Errorf("a %s without its id", d.noun)
	}
	tab.put(0, d.id(obj), "", d.name(obj), obj)
	return nil
}
