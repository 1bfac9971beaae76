package pki

import (
	"crypto"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/durable"
)

// The files of an identity, named as Docker names them.
const (
	fileCert = "swarm-node.crt"
	fileKey  = "swarm-node.key"
	fileRoot = "swarm-root-ca.crt"
)

// Load reads the identity kept under dir; errors.Is(err, fs.ErrNotExist) when
// there is none.
func Load(dir string) (*Identity, error) {
	var b [3][]byte
	for i, name := range []string{fileRoot, fileCert, fileKey} {
		var err error
		if b[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
	}
	root, err := ParseRoot(b[0], nil)
	if err != nil {
		return nil, err
	}
	return NewIdentity(dir, root, b[1], b[2])
}

// Save writes the identity under its directory.
func (id *Identity) Save() error { return id.saveTo(id.dir, nil) }

// saveTo writes key, root and certificate under dir. The key file goes first
// and keeps old's key too, so that a crash between the two writes leaves a
// certificate that still finds its key.
func (id *Identity) saveTo(dir string, old *Identity) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	cert := id.tlsCert()
	keys, err := keyPEM(cert.PrivateKey.(crypto.Signer))
	if err != nil {
		return fmt.Errorf("node key: %w", err)
	}
	if old != nil {
		k, err := keyPEM(old.tlsCert().PrivateKey.(crypto.Signer))
		if err != nil {
			return fmt.Errorf("node key: %w", err)
		}
		keys = append(keys, k...)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{fileKey, keys}, {fileRoot, id.Root().CertPEM()}, {fileCert, certPEM(cert.Leaf.Raw)}} {
		if err := durable.WriteFile(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
	}
	return nil
}
