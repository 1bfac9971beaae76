// Package runtime ships runc, the shim and containers' init inside the skep binary
// and puts them on disk where they can be executed. They are built from pinned
// modules (the init is Debian's tini) by scripts/build-runtime.sh, compressed, and
// embedded from bin/. It never runs them: engine calls it and does.
package runtime

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// bin holds shim.gz, runc.gz and init.gz once they are built; the placeholder
// keeps the embedding valid before.
//
//go:embed bin
var bin embed.FS

// Programs are the paths of what containers are run with.
type Programs struct {
	Shim string
	Runc string
	Init string // static: it runs in any container's file system
}

// InitVersion is that of the init, "" if this binary was built without.
func InitVersion() string {
	data, err := bin.ReadFile("bin/init.version")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Unpack makes sure that the embedded programs are on disk below dir and returns
// their paths. The directory's name carries a hash of their content, so that an
// upgraded daemon leaves the programs of running containers alone.
func Unpack(dir string) (Programs, error) {
	sum := sha256.New()
	packed := map[string][]byte{}
	for _, name := range []string{"runc", "shim", "init"} {
		data, err := bin.ReadFile("bin/" + name + ".gz")
		if errors.Is(err, fs.ErrNotExist) {
			return Programs{}, fmt.Errorf("this binary was built without %s: run scripts/build-runtime.sh and build it again", name)
		}
		if err != nil {
			return Programs{}, err
		}
		packed[name] = data
		sum.Write(data)
	}
	dir = filepath.Join(dir, hex.EncodeToString(sum.Sum(nil))[:12])
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return Programs{}, err
	}
	p := Programs{Shim: filepath.Join(dir, "skep-shim"), Runc: filepath.Join(dir, "runc"), Init: filepath.Join(dir, "docker-init")}
	for path, data := range map[string][]byte{p.Shim: packed["shim"], p.Runc: packed["runc"], p.Init: packed["init"]} {
		if err := unpack(path, data); err != nil {
			return Programs{}, fmt.Errorf("unpack %s: %w", path, err)
		}
	}
	return p, nil
}

// unpack writes one program, complete or not at all, and on disk: a power cut that
// left half of it would leave a host that can start nothing. One that is there,
// all of it, is left.
func unpack(path string, data []byte) error {
	size := binary.LittleEndian.Uint32(data[len(data)-4:]) // RFC 1952: of what is packed
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o100 != 0 && st.Size() == int64(size) {
		return nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := io.Copy(f, z); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
