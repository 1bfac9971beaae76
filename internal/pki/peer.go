package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// The protocols of the cluster port, told apart by ALPN.
const (
	ProtoRPC  = "h2"
	ProtoRaft = "skep-raft"
)

// Peer is who a certificate says its holder is.
type Peer struct {
	NodeID    string
	Role      swarm.NodeRole
	ClusterID string
	// Expired is set when the certificate has ended. Such a peer has proved that
	// it holds the key, which is good for one thing: a new certificate.
	Expired bool
	// NotAfter is when the certificate ends.
	NotAfter time.Time
}

// Zero reports whether the peer showed no certificate.
func (p Peer) Zero() bool { return p.NodeID == "" }

// PeerOf returns who is at the other end of a connection made with one of
// Identity's configurations: the zero Peer when it showed no certificate.
func PeerOf(cs tls.ConnectionState, root *Root, now time.Time) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, nil
	}
	return verifyLeaf(cs.PeerCertificates[0], root, now)
}

// verifyLeaf checks that leaf was issued by root and returns whom it names.
// One that was valid but has ended is returned with Expired set.
func verifyLeaf(leaf *x509.Certificate, root *Root, now time.Time) (Peer, error) {
	p := Peer{NodeID: leaf.Subject.CommonName, NotAfter: leaf.NotAfter}
	if now.After(leaf.NotAfter) {
		p.Expired, now = true, leaf.NotAfter
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:       root.pool,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Peer{}, err
	}
	role, ok := ouRole(leaf.Subject.OrganizationalUnit)
	if !ok || p.NodeID == "" || len(leaf.Subject.Organization) != 1 {
		return Peer{}, cluster.Deniedf("the certificate of %q names no role in a swarm", p.NodeID)
	}
	p.Role, p.ClusterID = role, leaf.Subject.Organization[0]
	return p, nil
}

// ServerTLS returns the configuration of the cluster port. A client may come
// without a certificate (to join), or with an expired one (to renew): what each
// may ask for is decided call by call from PeerOf. Certificates of other roots
// fail the handshake.
func (id *Identity) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ProtoRPC, ProtoRaft},
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.tlsCert(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := PeerOf(cs, id.Root(), time.Now())
			return err
		},
	}
}

// ClientTLS returns the configuration for a connection to a manager of this
// swarm: to the one named nodeID, or to any when it is "".
func (id *Identity) ClientTLS(proto, nodeID string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{proto},
		ServerName: ouManager,
		// The host's roots and names mean nothing here; VerifyConnection checks
		// the chain against the swarm's root and the role.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.tlsCert(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			p, err := PeerOf(cs, id.Root(), time.Now())
			if err != nil {
				return err
			}
			return checkManager(p, id.Peer().ClusterID, nodeID)
		},
	}
}

// RaftTLS returns the configuration for a connection to another manager's Raft.
// allow says whether that manager is one of the group: an expired certificate
// proves who its holder is no less, and managers that were all switched off for
// too long must elect a leader before anybody can renew.
func (id *Identity) RaftTLS(allow func(Peer) error) *tls.Config {
	cfg := id.ClientTLS(ProtoRaft, "")
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		p, err := PeerOf(cs, id.Root(), time.Now())
		if err != nil {
			return err
		}
		if err := allow(p); err != nil {
			return err
		}
		p.Expired = false
		return checkManager(p, id.Peer().ClusterID, "")
	}
	return cfg
}

func checkManager(p Peer, clusterID, nodeID string) error {
	switch {
	case p.Zero() || p.Role != swarm.NodeRoleManager:
		return cluster.Deniedf("the peer %q is not a manager", p.NodeID)
	case p.Expired:
		return cluster.Deniedf("the certificate of manager %s ended at %s", p.NodeID, p.NotAfter.UTC().Format(time.RFC3339))
	case clusterID != "" && p.ClusterID != clusterID:
		return cluster.Deniedf("manager %s is of another swarm", p.NodeID)
	case nodeID != "" && p.NodeID != nodeID:
		return cluster.Deniedf("the peer is manager %s, not %s", p.NodeID, nodeID)
	}
	return nil
}

// JoinTLS returns the configuration for a first connection, which trusts the
// root that tok carries the digest of. Once connected, root() is that root.
func JoinTLS(tok Token) (cfg *tls.Config, root func() *Root) {
	found := make(chan *Root, 1)
	cfg = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ProtoRPC},
		ServerName:         ouManager,
		InsecureSkipVerify: true, // VerifyConnection pins the root instead
		VerifyConnection: func(cs tls.ConnectionState) error {
			r, err := pinnedRoot(cs, tok)
			if err != nil {
				return err
			}
			p, err := PeerOf(cs, r, time.Now())
			if err != nil {
				return err
			}
			if err := checkManager(p, "", ""); err != nil {
				return err
			}
			select {
			case found <- r:
			default:
			}
			return nil
		},
	}
	return cfg, func() *Root {
		select {
		case r := <-found:
			found <- r
			return r
		default:
			return nil
		}
	}
}

// pinnedRoot finds the certificate in the peer's chain that the token names.
func pinnedRoot(cs tls.ConnectionState, tok Token) (*Root, error) {
	for _, c := range cs.PeerCertificates {
		if c.IsCA && sha256.Sum256(c.Raw) == tok.Digest {
			return newRoot(c, nil), nil
		}
	}
	return nil, &FingerprintError{Want: tok.Fingerprint()}
}

// FingerprintError says that the manager is not of the swarm the token is for.
type FingerprintError struct{ Want string }

// Error returns Docker's words.
func (e *FingerprintError) Error() string {
	return fmt.Sprintf("remote CA does not match fingerprint. Expected: %s", e.Want)
}
