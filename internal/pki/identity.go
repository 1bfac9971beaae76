package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// Identity is this node's certificate, its key and the root it trusts. It is
// replaced at renewal while connections are made with it, so everything asks it
// anew. All methods are safe for concurrent use.
type Identity struct {
	dir string

	mu      sync.Mutex
	cert    *tls.Certificate
	peer    Peer
	root    *Root
	changed chan struct{} // closed and replaced when the certificate changes
}

// NewIdentity checks a certificate against its key and root. It is kept under
// dir, "" for memory only, by Replace and Save.
func NewIdentity(dir string, root *Root, cert, key []byte) (*Identity, error) {
	id := &Identity{dir: dir, changed: make(chan struct{})}
	if err := id.set(root, cert, key); err != nil {
		return nil, err
	}
	return id, nil
}

// set makes cert the node's. Expiry is not looked at: a late renewal starts
// from an expired certificate.
func (id *Identity) set(root *Root, cert, key []byte) error {
	leaf, err := parseCert(cert)
	if err != nil {
		return fmt.Errorf("node certificate: %w", err)
	}
	peer, err := verifyLeaf(leaf, root, leaf.NotAfter)
	if err != nil {
		return fmt.Errorf("node certificate: %w", err)
	}
	keys, err := parseKeys(key)
	if err != nil {
		return fmt.Errorf("node key: %w", err)
	}
	k := matchingKey(keys, leaf)
	if k == nil {
		return errors.New("node key: it is not the certificate's")
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	// The root travels in the chain, so that a joiner that knows only its digest
	// can verify the chain in the handshake.
	id.cert = &tls.Certificate{
		Certificate: [][]byte{leaf.Raw, root.cert.Raw},
		PrivateKey:  k,
		Leaf:        leaf,
	}
	id.peer, id.root = peer, root
	close(id.changed)
	id.changed = make(chan struct{})
	return nil
}

// Peer returns who this node is by its certificate.
func (id *Identity) Peer() Peer {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.peer
}

// Root returns the root this node trusts.
func (id *Identity) Root() *Root {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.root
}

// Leaf returns this node's certificate, which must not be changed.
func (id *Identity) Leaf() *x509.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert.Leaf
}

// Changed returns a channel that is closed when the certificate is replaced.
func (id *Identity) Changed() <-chan struct{} {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.changed
}

// Replace makes cert and key this node's identity, on disk first. Another
// node's certificate is refused.
func (id *Identity) Replace(cert, key []byte) error {
	id.mu.Lock()
	root, old := id.root, id.peer
	id.mu.Unlock()
	next, err := NewIdentity("", root, cert, key)
	if err != nil {
		return err
	}
	if p := next.Peer(); p.NodeID != old.NodeID || p.ClusterID != old.ClusterID {
		return cluster.Invalidf("node certificate: it names node %s, this is node %s", p.NodeID, old.NodeID)
	}
	if id.dir != "" {
		if err := next.saveTo(id.dir, id); err != nil {
			return err
		}
	}
	return id.set(root, cert, key)
}

func (id *Identity) tlsCert() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.cert
}

// Expired reports whether the certificate has ended at now.
func (id *Identity) Expired(now time.Time) bool { return now.After(id.Leaf().NotAfter) }
