package store

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/skep-dev/skep/internal/cluster"
)

// MaxEntry bounds an encoded entry. A loop with more to write makes several.
const MaxEntry = 16 << 20

// entryFormat is the first byte of an encoded entry.
const entryFormat = 1

var (
	encMode = must(cbor.EncOptions{Sort: cbor.SortNone}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  12,
		MaxMapPairs:      64,
		MaxArrayElements: 1 << 20,
		// A message of an agent may hold anything; it must not stop the log.
		UTF8: cbor.UTF8DecodeInvalid,
	}.DecMode())
)

func must[T any](m T, err error) T {
	if err != nil {
		panic(err) // the options above are constants
	}
	return m
}

// wireEntry is Entry as it is logged: tasks and statuses, of which there are
// many, in a compact form with ids as raw bytes, everything else as JSON.
type wireEntry struct {
	_       struct{} `cbor:",toarray"`
	At      int64    // Unix nanoseconds; 0 is the zero time
	Changes []wireChange
}

type wireChange struct {
	Op     Op          `cbor:"1,keyasint,omitempty"`
	Kind   Kind        `cbor:"2,keyasint,omitempty"`
	ID     packedID    `cbor:"3,keyasint"`
	Expect uint64      `cbor:"4,keyasint,omitempty"`
	Task   *wireTask   `cbor:"5,keyasint,omitempty"`
	Status *wireStatus `cbor:"6,keyasint,omitempty"`
	Object []byte      `cbor:"7,keyasint,omitempty"` // JSON
}

// EncodeEntry returns e as it is logged.
func EncodeEntry(e Entry) ([]byte, error) {
	w := wireEntry{At: nanos(e.At), Changes: make([]wireChange, len(e.Changes))}
	for i := range e.Changes {
		if err := toWire(&w.Changes[i], &e.Changes[i]); err != nil {
			return nil, err
		}
	}
	b, err := encMode.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	if len(b) >= MaxEntry {
		return nil, cluster.Invalidf("a write of %d bytes is larger than the log takes (%d)", len(b), MaxEntry)
	}
	return append([]byte{entryFormat}, b...), nil
}

// DecodeEntry parses what EncodeEntry made. It may be given anything.
func DecodeEntry(b []byte) (Entry, error) {
	if len(b) == 0 || len(b) > MaxEntry {
		return Entry{}, cluster.Invalidf("a log entry of %d bytes", len(b))
	}
	if b[0] != entryFormat {
		return Entry{}, cluster.Invalidf("a log entry of the unknown format %d", b[0])
	}
	var w wireEntry
	if err := decMode.Unmarshal(b[1:], &w); err != nil {
		return Entry{}, fmt.Errorf("log entry: %w", err)
	}
	e := Entry{At: instant(w.At), Changes: make([]Change, len(w.Changes))}
	for i := range w.Changes {
		if err := fromWire(&e.Changes[i], &w.Changes[i]); err != nil {
			return Entry{}, err
		}
	}
	return e, nil
}

func toWire(w *wireChange, c *Change) error {
	*w = wireChange{Op: c.Op, Kind: c.Kind, ID: packedID(c.ID), Expect: c.Expect}
	if c.Status != nil {
		w.Status = wireStatusOf(c.Status)
	}
	if c.Task != nil {
		w.Task = wireTaskOf(c.Task)
		if c.Op == OpUpdate {
			w.Task.Status = nil // a loop does not write it
		}
	}
	if c.Op == OpDelete {
		return nil // its id says all
	}
	var obj any
	switch {
	case c.Cluster != nil:
		obj = c.Cluster
	case c.Node != nil:
		obj = c.Node
	case c.Service != nil:
		obj = c.Service
	case c.Network != nil:
		obj = c.Network
	case c.Secret != nil:
		obj = c.Secret
	case c.Config != nil:
		obj = c.Config
	default:
		return nil
	}
	b, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("log entry: %w", err)
	}
	w.Object = b
	return nil
}

func fromWire(c *Change, w *wireChange) error {
	*c = Change{Op: w.Op, Kind: w.Kind, ID: string(w.ID), Expect: w.Expect}
	if w.Status != nil {
		st := w.Status.status()
		c.Status = &st
	}
	if w.Task != nil {
		t, err := w.Task.task(c.ID)
		if err != nil {
			return err
		}
		c.Task = t
	}
	if len(w.Object) == 0 {
		return nil
	}
	var obj any
	switch c.Kind {
	case KindCluster:
		c.Cluster = &cluster.Cluster{}
		obj = c.Cluster
	case KindNode:
		c.Node = &cluster.Node{}
		obj = c.Node
	case KindService:
		c.Service = &cluster.Service{}
		obj = c.Service
	case KindNetwork:
		c.Network = &cluster.Network{}
		obj = c.Network
	case KindSecret:
		c.Secret = &cluster.Secret{}
		obj = c.Secret
	case KindConfig:
		c.Config = &cluster.Config{}
		obj = c.Config
	default:
		return cluster.Invalidf("a log entry holds an object of the unknown kind %d", c.Kind)
	}
	if err := json.Unmarshal(w.Object, obj); err != nil {
		return fmt.Errorf("log entry: %w", err)
	}
	return nil
}

// nanos and instant carry a time as Unix nanoseconds; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
