package namespace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: network namespaces need root")
	}
}

// where is the namespace a function finds itself in.
func where(t *testing.T) string {
	t.Helper()
	to, err := os.Readlink(ofThread)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestDo(t *testing.T) {
	needRoot(t)
	path, err := Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(Remove(path), Remove(path)); err != nil || At(path) {
			t.Errorf("removed twice: %v, still there: %v", err, At(path))
		}
	}()
	if !At(path) || At(filepath.Dir(path)) || At(path+"x") {
		t.Errorf("a namespace: %v, its folder: %v, nothing: %v", At(path), At(filepath.Dir(path)), At(path+"x"))
	}
	home, inner := where(t), ""
	wrong := errors.New("what f returns")
	err = DoAt(path, func(ns netns.NsHandle) error {
		inner = where(t)
		return Do(ns, func() error { return wrong })
	})
	if err != wrong || inner == home || where(t) != home {
		t.Errorf("error %v, namespace %s inside, %s before, %s after", err, inner, home, where(t))
	}
	// A test that gives up inside, and a namespace that is none.
	_ = DoAt(path, func(netns.NsHandle) error { runtime.Goexit(); return nil })
	if err := DoAt(os.DevNull, func(netns.NsHandle) error { t.Error("called"); return nil }); err == nil {
		t.Error("entered a device")
	}
	if where(t) != home {
		t.Errorf("%s is not home", where(t))
	}
}

func TestSet(t *testing.T) {
	needRoot(t)
	path, err := Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer Remove(path)
	const key, alike, none = "net/ipv4/ip_default_ttl", "net/ipv4/ping_group_range", "net/ipv4/skep_has_none"
	err = DoAt(path, func(ns netns.NsHandle) error {
		got, err := SetAll(ns, map[string]string{key: "33", alike: "0\t2147483647", none: "1"})
		if len(got) != 1 || got[0] != key {
			t.Errorf("changed: %v", got)
		}
		if b, err := os.ReadFile("/proc/sys/" + key); string(b) != "33\n" {
			t.Errorf("it is %q, %v", b, err)
		}
		if _, err := Set(key, "many"); !errors.Is(err, unix.EINVAL) {
			t.Errorf("not a number: %v", err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile("/proc/sys/" + key); string(b) == "33\n" {
		t.Error("our own was changed")
	}
}

func TestPool(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	p := NewPool(dir, 2)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	full := func() {
		for end := time.Now().Add(10 * time.Second); p.short(); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("the pool stays short")
			}
		}
	}
	full()
	mine, err := p.Take()
	if err != nil || !At(mine) {
		t.Fatal(mine, err)
	}
	full()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	left := func() (n int) {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if n := left(); n != 1 {
		t.Errorf("%d left by the pool; want the one that is ours", n)
	}
	// What an earlier process left goes, what is in use stays.
	if _, err := Make(dir); err != nil {
		t.Fatal(err)
	}
	if err := p.Sweep(map[string]bool{mine: true}); err != nil || left() != 1 || !At(mine) {
		t.Errorf("%d left by the sweep (%v); want the one that is ours", left(), err)
	}
	if err := Remove(mine); err != nil {
		t.Error(err)
	}
}
