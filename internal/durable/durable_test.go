package durable

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFileReplacesTheWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path+".new", []byte("what a crash left, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"the first", "2nd", ""} {
		if err := WriteFile(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the file: %v, %v", left, err)
	}
}

func TestWriteFileThatFailsLeavesWhatWas(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x")); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if _, err := os.Stat(filepath.Join(path, "in the way")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + ".new"); !os.IsNotExist(err) {
		t.Errorf("a half-made file is left: %v", err)
	}
	if err := WriteFile(filepath.Join(dir, "nowhere", "state"), nil); !os.IsNotExist(err) {
		t.Errorf("without a directory: %v; want %v", err, fs.ErrNotExist)
	}
}
