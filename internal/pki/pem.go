package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
)

// maxPEM bounds what is parsed from outside.
const maxPEM = 64 << 10

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseCert reads the first certificate of b.
func parseCert(b []byte) (*x509.Certificate, error) {
	if len(b) > maxPEM {
		return nil, errors.New("too long")
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// parseKeys reads all private keys of b, at least one.
func parseKeys(b []byte) ([]crypto.Signer, error) {
	if len(b) > maxPEM {
		return nil, errors.New("too long")
	}
	var keys []crypto.Signer
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PRIVATE KEY" {
			continue
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if s, ok := k.(crypto.Signer); ok {
			keys = append(keys, s)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no PEM private key")
	}
	return keys, nil
}

// matchingKey returns the key that cert is of, or nil.
func matchingKey(keys []crypto.Signer, cert *x509.Certificate) crypto.Signer {
	for _, k := range keys {
		if pub, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(cert.PublicKey) {
			return k
		}
	}
	return nil
}

// parseCSR reads a certificate request of a P-256 key and checks that it is
// signed with that key.
func parseCSR(b []byte) (*x509.CertificateRequest, error) {
	if len(b) > maxPEM {
		return nil, errors.New("too long")
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if pub, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("its key is not of P-256")
	}
	return csr, csr.CheckSignature()
}
