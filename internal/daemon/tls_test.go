package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/httpapi"
)

// certificate writes a certificate and its key; parent nil makes a CA.
func certificate(t *testing.T, dir, name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if parent == nil {
		parent, signer = c, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: raw}, "-key.pem": {Type: "EC PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err = x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// alone is in no swarm.
type alone struct{ httpapi.Member }

func (alone) Info(context.Context) swarm.Info { return swarm.Info{} }

func TestTLSVerifiesClients(t *testing.T) {
	dir := t.TempDir()
	ca, signer := certificate(t, dir, "ca", nil, nil)
	certificate(t, dir, "server", ca, signer)
	certificate(t, dir, "client", ca, signer)
	otherCA, other := certificate(t, dir, "other-ca", nil, nil)
	certificate(t, dir, "stranger", otherCA, other)

	c := Default()
	c.TLSVerify, c.TLSCA = true, filepath.Join(dir, "ca.pem")
	c.TLSCert, c.TLSKey = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem")
	c.Hosts = []string{"tcp://127.0.0.1:0"}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	ls, err := listen(&c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	api := &httpapi.Server{Member: alone{}, Log: slog.New(slog.DiscardHandler)}
	go api.Serve(t.Context(), ls[0])

	roots := x509.NewCertPool()
	roots.AddCert(ca)
	get := func(name string) (string, error) {
		conf := &tls.Config{RootCAs: roots}
		if name != "" {
			cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			conf.Certificates = []tls.Certificate{cert}
		}
		client := http.Client{Transport: &http.Transport{TLSClientConfig: conf}, Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://" + ls[0].Addr().String() + "/_ping")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		return string(raw), err
	}
	if got, err := get("client"); got != "OK" || err != nil {
		t.Errorf("a client of the CA: %q, %v", got, err)
	}
	for _, name := range []string{"", "stranger"} {
		if got, err := get(name); err == nil {
			t.Errorf("client %q was let in: %q", name, got)
		}
	}
}
