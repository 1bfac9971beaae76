package control

import (
	"crypto/x509"
	"encoding/pem"

	"github.com/moby/moby/api/types/swarm"
)

// tlsInfo describes a root certificate as the Engine API does.
func tlsInfo(root []byte) swarm.TLSInfo {
	info := swarm.TLSInfo{TrustRoot: string(root)}
	block, _ := pem.Decode(root)
	if block == nil {
		return info
	}
	if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
		info.CertIssuerSubject, info.CertIssuerPublicKey = cert.RawSubject, cert.RawSubjectPublicKeyInfo
	}
	return info
}
