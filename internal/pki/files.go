package pki

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	if err := writeAtomic(filepath.Join(dir, fileKey), keys); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(dir, fileRoot), id.Root().CertPEM()); err != nil {
		return err
	}
	return writeAtomic(filepath.Join(dir, fileCert), certPEM(cert.Leaf.Raw))
}

// writeAtomic replaces path by b, readable by its owner only, and on disk when
// it returns.
func writeAtomic(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // 0600 by itself
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("certificates: %w", err), removeIfThere(f.Name()))
		}
	}()
	if _, err = f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
