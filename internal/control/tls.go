package control

import (
	"crypto/x509"
	"encoding/pem"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
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

// networkOptions returns a network's options with the VNI it was given, where
// Docker's driver shows it.
func networkOptions(n *cluster.Network) map[string]string {
	out := map[string]string{}
	for k, v := range driverOf(n).Options {
		out[k] = v
	}
	if n.VNI != 0 {
		out["com.docker.network.driver.overlay.vxlanid_list"] = strconv.FormatUint(uint64(n.VNI), 10)
	}
	return out
}
