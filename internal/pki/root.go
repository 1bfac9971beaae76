package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// Root is the swarm's root of trust. Without its key it verifies; with it, it
// issues.
type Root struct {
	cert *x509.Certificate
	key  crypto.Signer // nil: cannot issue
	pool *x509.CertPool
}

// NewRoot makes a root that is valid for 20 years from now on.
func NewRoot(now time.Time) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "swarm-ca"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(RootValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return newRoot(cert, key), nil
}

func newRoot(cert *x509.Certificate, key crypto.Signer) *Root {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &Root{cert: cert, key: key, pool: pool}
}

// ParseRoot reads a root from PEM. keyPEM may be nil.
func ParseRoot(certPEM, keyPEM []byte) (*Root, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("root certificate: it may not sign others")
	}
	if keyPEM == nil {
		return newRoot(cert, nil), nil
	}
	keys, err := parseKeys(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	key := matchingKey(keys, cert)
	if key == nil {
		return nil, errors.New("root key: it is not the certificate's")
	}
	return newRoot(cert, key), nil
}

// CertPEM returns the root's certificate.
func (r *Root) CertPEM() []byte { return certPEM(r.cert.Raw) }

// KeyPEM returns the root's key, nil without one.
func (r *Root) KeyPEM() ([]byte, error) {
	if r.key == nil {
		return nil, nil
	}
	return keyPEM(r.key)
}

// Digest returns the SHA-256 of the certificate, which join tokens carry.
func (r *Root) Digest() [32]byte { return sha256.Sum256(r.cert.Raw) }

// Certificate returns the parsed certificate, which must not be changed.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// Subject is who a certificate is issued to.
type Subject struct {
	NodeID    string
	Role      swarm.NodeRole
	ClusterID string
}

// Issue signs the key of a certificate request for sub; what else the request
// asks for is ignored. A request that is not well-formed or not signed by its
// own key is errdefs.ErrInvalidArgument.
func (r *Root) Issue(csrPEM []byte, sub Subject, now time.Time, validity time.Duration) ([]byte, error) {
	if r.key == nil {
		return nil, errors.New("this manager does not have the swarm's root key")
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, cluster.Invalidf("certificate request: %v", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	if validity < MinValidity {
		validity = DefaultValidity
	}
	ou := roleOU(sub.Role)
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName:         sub.NodeID,
			OrganizationalUnit: []string{ou},
			Organization:       []string{sub.ClusterID},
		},
		DNSNames:              []string{ou, sub.NodeID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, r.cert, csr.PublicKey, r.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of node %s: %w", sub.NodeID, err)
	}
	return certPEM(der), nil
}

// NewRequest returns a new P-256 key and a certificate request signed with it.
func NewRequest() (csrPEM, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("node key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	key, err = keyPEM(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
