package dispatch

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/grpc/mem"
)

// Bounds of what is taken from the other end of a connection.
const (
	maxUp      = 4 << 20  // a message from a node
	maxDown    = 16 << 20 // a message from a manager
	maxHeaders = 16 << 10 // the headers of a call
	chunkLen   = 1 << 20  // about how long the leader makes one message
)

// codec writes messages as CBOR (RFC 8949). Fields that a neighbouring version
// does not know are skipped; anything malformed is an error.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() (*codec, error) {
	enc, err := cbor.EncOptions{
		Sort:          cbor.SortNone,
		Time:          cbor.TimeRFC3339NanoUTC,
		NilContainers: cbor.NilContainerAsNull,
	}.EncMode()
	if err != nil {
		return nil, err
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:  24,
		MaxArrayElements: 1 << 20,
		MaxMapPairs:      1 << 16,
		IndefLength:      cbor.IndefLengthForbidden,
		// A container's runtime may say anything, and a node that passes it on must
		// not lose its session over it: texts are made valid where they are kept.
		UTF8: cbor.UTF8DecodeInvalid,
	}.DecMode()
	if err != nil {
		return nil, err
	}
	return &codec{enc: enc, dec: dec}, nil
}

// Marshal implements gRPC's codec.
func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := c.enc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("message %T: %w", v, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements gRPC's codec.
func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	if err := c.dec.Unmarshal(data.Materialize(), v); err != nil {
		return fmt.Errorf("message %T: %w", v, err)
	}
	return nil
}

// Name implements gRPC's codec.
func (c *codec) Name() string { return "cbor" }
