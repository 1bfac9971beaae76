// Package durable writes the small files that a host must find again after a
// power cut: each is replaced whole, and on disk before the caller goes on. It
// knows nothing of what is in them and keeps none open. pki, raftlog, swarm,
// network, volume and engine keep their files with it; what the power takes with
// it anyway (a task's state) is written without it, and without its cost.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path by b, readable by its owner only. A crash
// leaves the old file or the new one, and the new one once WriteFile has
// returned. Two calls for the same path must not overlap.
func WriteFile(path string, b []byte) error {
	tmp := path + ".new" // one name, so that a crash leaves no more than one
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		if gone := os.Remove(tmp); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes durable which files a directory has: after one was made, renamed
// or removed.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
