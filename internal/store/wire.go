package store

import (
	"encoding/hex"
	"errors"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// wireTask is a task as it is logged and kept in snapshots. Its id stands in
// the change around it; the fields from 12 on are in snapshots only.
type wireTask struct {
	Service   packedID    `cbor:"1,keyasint"`
	Spec      uint64      `cbor:"2,keyasint,omitempty"`
	Slot      int         `cbor:"3,keyasint,omitempty"`
	Node      *packedID   `cbor:"4,keyasint,omitempty"`
	Desired   uint16      `cbor:"5,keyasint,omitempty"`
	NotBefore int64       `cbor:"6,keyasint,omitempty"`
	Networks  []wireNet   `cbor:"7,keyasint,omitempty"`
	Iteration uint64      `cbor:"8,keyasint,omitempty"`
	Attach    *wireAttach `cbor:"9,keyasint,omitempty"`
	Status    *wireStatus `cbor:"10,keyasint,omitempty"`
	Rejected  string      `cbor:"11,keyasint,omitempty"`
	Version   uint64      `cbor:"12,keyasint,omitempty"`
	Wants     uint64      `cbor:"13,keyasint,omitempty"`
	Created   int64       `cbor:"14,keyasint,omitempty"`
	Updated   int64       `cbor:"15,keyasint,omitempty"`
}

type wireNet struct {
	_       struct{} `cbor:",toarray"`
	Network packedID
	Addr    []byte
	Aliases []string
}

type wireAttach struct {
	_         struct{} `cbor:",toarray"`
	Network   packedID
	Container packedHex
	Wanted    []byte
	Names     []string
}

type wireStatus struct {
	State     uint16     `cbor:"1,keyasint,omitempty"`
	At        int64      `cbor:"2,keyasint,omitempty"`
	Message   string     `cbor:"3,keyasint,omitempty"`
	Err       string     `cbor:"4,keyasint,omitempty"`
	Container *packedHex `cbor:"5,keyasint,omitempty"`
	PID       int        `cbor:"6,keyasint,omitempty"`
	ExitCode  int        `cbor:"7,keyasint,omitempty"`
	Ports     []wirePort `cbor:"8,keyasint,omitempty"`
	Serving   bool       `cbor:"9,keyasint,omitempty"`
}

type wirePort struct {
	_         struct{} `cbor:",toarray"`
	Name      string
	Protocol  string
	Target    uint32
	Published uint32
	Mode      string
}

func wireTaskOf(t *cluster.Task) *wireTask {
	w := &wireTask{
		Service: packedID(t.ServiceID), Spec: t.SpecVersion, Slot: t.Slot, Desired: uint16(t.Desired),
		NotBefore: nanos(t.NotBefore), Iteration: t.Iteration, Rejected: t.Rejected, Status: wireStatusOf(&t.Status),
	}
	if t.NodeID != "" {
		id := packedID(t.NodeID)
		w.Node = &id
	}
	for _, n := range t.Networks {
		w.Networks = append(w.Networks, wireNet{Network: packedID(n.NetworkID), Addr: addrBytes(n.Addr), Aliases: n.Aliases})
	}
	if a := t.Attach; a != nil {
		w.Attach = &wireAttach{Network: packedID(a.NetworkID), Container: packedHex(a.ContainerID), Wanted: addrBytes(a.Wanted), Names: a.Names}
	}
	return w
}

func (w *wireTask) task(id string) (*cluster.Task, error) {
	t := &cluster.Task{
		ID: id, ServiceID: string(w.Service), SpecVersion: w.Spec, Slot: w.Slot, Desired: cluster.State(w.Desired),
		NotBefore: instant(w.NotBefore), Iteration: w.Iteration, Rejected: w.Rejected,
		Version: w.Version, Wants: w.Wants, CreatedAt: instant(w.Created), UpdatedAt: instant(w.Updated),
	}
	if w.Slot < 0 {
		return nil, cluster.Invalidf("a logged task has the slot %d", w.Slot)
	}
	if w.Node != nil {
		t.NodeID = string(*w.Node)
	}
	for _, n := range w.Networks {
		addr, err := addrOf(n.Addr)
		if err != nil {
			return nil, err
		}
		t.Networks = append(t.Networks, cluster.Attachment{NetworkID: string(n.Network), Addr: addr, Aliases: n.Aliases})
	}
	if a := w.Attach; a != nil {
		addr, err := addrOf(a.Wanted)
		if err != nil {
			return nil, err
		}
		t.Attach = &cluster.Attach{NetworkID: string(a.Network), ContainerID: string(a.Container), Wanted: addr, Names: a.Names}
	}
	if w.Status != nil {
		t.Status = w.Status.status()
	}
	return t, nil
}

func wireStatusOf(s *cluster.Status) *wireStatus {
	w := &wireStatus{
		State: uint16(s.State), At: nanos(s.At), Message: s.Message, Err: s.Err,
		PID: s.PID, ExitCode: s.ExitCode, Serving: s.Serving,
	}
	if s.ContainerID != "" {
		id := packedHex(s.ContainerID)
		w.Container = &id
	}
	for _, p := range s.Ports {
		w.Ports = append(w.Ports, wirePort{
			Name: p.Name, Protocol: string(p.Protocol), Target: p.TargetPort,
			Published: p.PublishedPort, Mode: string(p.PublishMode),
		})
	}
	return w
}

func (w *wireStatus) status() cluster.Status {
	s := cluster.Status{
		State: cluster.State(w.State), At: instant(w.At), Message: w.Message, Err: w.Err,
		PID: w.PID, ExitCode: w.ExitCode, Serving: w.Serving,
	}
	if w.Container != nil {
		s.ContainerID = string(*w.Container)
	}
	for _, p := range w.Ports {
		s.Ports = append(s.Ports, swarm.PortConfig{
			Name: p.Name, Protocol: network.IPProtocol(p.Protocol), TargetPort: p.Target,
			PublishedPort: p.Published, PublishMode: swarm.PortConfigPublishMode(p.Mode),
		})
	}
	return s
}

func addrBytes(a netip.Addr) []byte { return a.AsSlice() }

func addrOf(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, cluster.Invalidf("a logged address has %d bytes", len(b))
	}
	return a, nil
}

var errPacked = errors.New("an id is neither 16 bytes nor text")

// packedID is an object's id: 16 bytes when it is 25 digits of base 36 that fit
// in 128 bits, as those of cluster.NewID do, otherwise text.
type packedID string

// MarshalCBOR implements cbor.Marshaler.
func (p packedID) MarshalCBOR() ([]byte, error) {
	hi, lo, ok := parse36(string(p))
	if !ok {
		return encMode.Marshal(string(p))
	}
	b := make([]byte, 17)
	b[0] = 0x50 // a byte string of 16
	for i := range 8 {
		b[8-i], b[16-i] = byte(hi), byte(lo)
		hi, lo = hi>>8, lo>>8
	}
	return b, nil
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (p *packedID) UnmarshalCBOR(b []byte) error {
	if len(b) == 17 && b[0] == 0x50 {
		var hi, lo uint64
		for i := range 8 {
			hi, lo = hi<<8|uint64(b[1+i]), lo<<8|uint64(b[9+i])
		}
		*p = packedID(format36(hi, lo))
		return nil
	}
	s, err := text(b)
	*p = packedID(s)
	return err
}

func text(b []byte) (string, error) {
	if len(b) == 0 || b[0]>>5 != 3 {
		return "", errPacked
	}
	var s string
	err := decMode.Unmarshal(b, &s)
	return s, err
}

func parse36(s string) (hi, lo uint64, ok bool) {
	if len(s) != cluster.IDLen {
		return 0, 0, false
	}
	for i := range len(s) {
		var d uint64
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			d = uint64(c - '0')
		case c >= 'a' && c <= 'z':
			d = uint64(c-'a') + 10
		default:
			return 0, 0, false
		}
		over, h := bits.Mul64(hi, 36)
		carry, l := bits.Mul64(lo, 36)
		var c1, c2 uint64
		l, c1 = bits.Add64(l, d, 0)
		h, c2 = bits.Add64(h, carry, c1)
		if over != 0 || c2 != 0 {
			return 0, 0, false
		}
		hi, lo = h, l
	}
	return hi, lo, true
}

func format36(hi, lo uint64) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var b [cluster.IDLen]byte
	for i := len(b) - 1; i >= 0; i-- {
		var r uint64
		hi, r = hi/36, hi%36
		lo, r = bits.Div64(r, lo, 36)
		b[i] = digits[r]
	}
	return string(b[:])
}

// packedHex is a container's id: 32 bytes when it is 64 lower-case hexadecimal
// digits, otherwise text.
type packedHex string

// MarshalCBOR implements cbor.Marshaler.
func (p packedHex) MarshalCBOR() ([]byte, error) {
	b, err := hex.DecodeString(string(p))
	if err != nil || len(b) != 32 || strings.ToLower(string(p)) != string(p) {
		return encMode.Marshal(string(p))
	}
	return encMode.Marshal(b)
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (p *packedHex) UnmarshalCBOR(b []byte) error {
	if len(b) == 34 && b[0] == 0x58 && b[1] == 32 {
		*p = packedHex(hex.EncodeToString(b[2:]))
		return nil
	}
	s, err := text(b)
	*p = packedHex(s)
	return err
}

var (
	_ cbor.Marshaler   = packedID("")
	_ cbor.Unmarshaler = (*packedHex)(nil)
)
