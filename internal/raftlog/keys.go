package raftlog

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/skep-dev/skep/internal/durable"
)

// KeySize is the length of a data key and of the key that wraps it.
const KeySize = chacha20poly1305.KeySize

// ErrLocked is returned by OpenKeys when the data keys are wrapped and the
// wrapping key is missing or wrong.
var ErrLocked = errors.New("the log's keys are locked")

// Keys are the data keys that seal the log and its snapshots. New data is sealed
// with the newest; the older ones stay readable until Forget. They lie in one
// file, wrapped by a key-encryption key (autolock) or, without one, readable for
// the owner of the file. Safe for concurrent use.
type Keys struct {
	path string

	mu    sync.RWMutex // guards the fields below
	kek   []byte
	keys  []dataKey // oldest first, never empty
	aeads map[uint32]cipher.AEAD
}

type dataKey struct {
	id  uint32
	key []byte
}

// keysFile is Keys on disk.
type keysFile struct {
	Version int       `json:"version"`
	Wrapped bool      `json:"wrapped"`
	Keys    []fileKey `json:"keys"`
}

type fileKey struct {
	ID  uint32 `json:"id"`
	Key []byte `json:"key"` // nonce and sealed key when wrapped
}

// OpenKeys reads the keys at path, or makes the first one. kek is the
// key-encryption key, nil when there is none.
func OpenKeys(path string, kek []byte) (*Keys, error) {
	if kek != nil && len(kek) != KeySize {
		return nil, fmt.Errorf("a key-encryption key has %d bytes, not %d", KeySize, len(kek))
	}
	k := &Keys{path: path, kek: slices.Clone(kek), aeads: map[uint32]cipher.AEAD{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := k.Rotate(); err != nil {
			return nil, err
		}
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	if err := k.load(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func (k *Keys) load(b []byte) error {
	var f keysFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Version != 1 || len(f.Keys) == 0 {
		return errors.New("not a key file of this version")
	}
	if f.Wrapped && k.kek == nil {
		return ErrLocked
	}
	if !f.Wrapped {
		k.kek = nil
	}
	for _, fk := range f.Keys {
		key := fk.Key
		if f.Wrapped {
			var err error
			if key, err = unwrap(k.kek, fk.ID, fk.Key); err != nil {
				return ErrLocked
			}
		}
		if err := k.add(dataKey{fk.ID, key}); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keys) add(d dataKey) error {
	a, err := chacha20poly1305.NewX(d.key)
	if err != nil {
		return err
	}
	k.keys = append(k.keys, d)
	k.aeads[d.id] = a
	return nil
}

// Rotate makes a new data key; what is sealed from now on needs it.
func (k *Keys) Rotate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := dataKey{id: 1, key: make([]byte, KeySize)}
	rand.Read(d.key)
	if n := len(k.keys); n > 0 {
		d.id = k.keys[n-1].id + 1
	}
	if err := k.save(append(slices.Clone(k.keys), d), k.kek); err != nil {
		return err
	}
	return k.add(d)
}

// Rewrap wraps the keys with another key-encryption key; nil leaves them readable.
func (k *Keys) Rewrap(kek []byte) error {
	if kek != nil && len(kek) != KeySize {
		return fmt.Errorf("a key-encryption key has %d bytes, not %d", KeySize, len(kek))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.save(k.keys, kek); err != nil {
		return err
	}
	k.kek = slices.Clone(kek)
	return nil
}

// Forget drops every key but the newest. Nothing may be sealed with them any more.
func (k *Keys) Forget() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	newest := k.keys[len(k.keys)-1]
	if err := k.save([]dataKey{newest}, k.kek); err != nil {
		return err
	}
	k.keys = []dataKey{newest}
	k.aeads = map[uint32]cipher.AEAD{newest.id: k.aeads[newest.id]}
	return nil
}

func (k *Keys) save(keys []dataKey, kek []byte) error {
	f := keysFile{Version: 1, Wrapped: kek != nil}
	for _, d := range keys {
		fk := fileKey{ID: d.id, Key: d.key}
		if kek != nil {
			var err error
			if fk.Key, err = wrap(kek, d.id, d.key); err != nil {
				return err
			}
		}
		f.Keys = append(f.Keys, fk)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return durable.WriteFile(k.path, b)
}

// newest returns the key to seal with.
func (k *Keys) newest() (uint32, cipher.AEAD) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	id := k.keys[len(k.keys)-1].id
	return id, k.aeads[id]
}

func (k *Keys) aead(id uint32) (cipher.AEAD, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	a := k.aeads[id]
	if a == nil {
		return nil, fmt.Errorf("sealed with the unknown key %d", id)
	}
	return a, nil
}

// seal returns key id, nonce and the sealed plain text. The nonces are random:
// 24 bytes of them never meet again, however long a key is used.
func (k *Keys) seal(plain, aad []byte) []byte {
	id, a := k.newest()
	out := make([]byte, 4+a.NonceSize(), 4+a.NonceSize()+len(plain)+a.Overhead())
	binary.BigEndian.PutUint32(out, id)
	rand.Read(out[4:])
	return a.Seal(out, out[4:], plain, aad)
}

func (k *Keys) open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 4+chacha20poly1305.NonceSizeX {
		return nil, errors.New("too short to be sealed")
	}
	a, err := k.aead(binary.BigEndian.Uint32(sealed))
	if err != nil {
		return nil, err
	}
	nonce := sealed[4 : 4+a.NonceSize()]
	return a.Open(nil, nonce, sealed[4+a.NonceSize():], aad)
}

func wrap(kek []byte, id uint32, key []byte) ([]byte, error) {
	a, err := chacha20poly1305.NewX(kek)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, a.NonceSize())
	rand.Read(nonce)
	return a.Seal(nonce, nonce, key, binary.BigEndian.AppendUint32(nil, id)), nil
}

func unwrap(kek []byte, id uint32, b []byte) ([]byte, error) {
	a, err := chacha20poly1305.NewX(kek)
	if err != nil {
		return nil, err
	}
	if len(b) < a.NonceSize() {
		return nil, ErrLocked
	}
	return a.Open(nil, b[:a.NonceSize()], b[a.NonceSize():], binary.BigEndian.AppendUint32(nil, id))
}
