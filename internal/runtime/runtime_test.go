package runtime

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestUnpackHalves: what a power cut left of a program is replaced; what is whole
// is left alone, since it runs.
func TestUnpackHalves(t *testing.T) {
	dir := t.TempDir()
	p, err := Unpack(dir)
	if err != nil && strings.Contains(err.Error(), "was built without") {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(p.Init, "--version").Output(); err != nil || InitVersion() == "" || !strings.Contains(string(out), InitVersion()) {
		t.Errorf("the init says %q (%v), and its version is %q", out, err, InitVersion())
	}
	whole, err := os.ReadFile(p.Runc)
	if err != nil {
		t.Fatal(err)
	}
	shim, err := os.Stat(p.Shim)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.Runc, int64(len(whole)/2)); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(p.Runc); err != nil || !bytes.Equal(again, whole) {
		t.Errorf("%d bytes of %d, %v", len(again), len(whole), err)
	}
	if st, err := os.Stat(p.Shim); err != nil || !os.SameFile(st, shim) {
		t.Errorf("a whole program was replaced: %v", err)
	}
}
