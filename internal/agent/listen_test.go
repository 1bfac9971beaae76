package agent

import (
	"net"
	"os"
	"testing"
)

func TestListeningTellsWhatIsOpen(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint32(l.Addr().(*net.TCPAddr).Port)
	open, err := listening(os.Getpid())
	if err != nil || !open[port] {
		t.Errorf("port %d is listened on, but: %v, %v", port, open, err)
	}
	// It is open already: this returns at once, else the test hangs for listenWait.
	awaitListener(t.Context(), os.Getpid(), []uint32{port})
	l.Close()
	if open, err = listening(os.Getpid()); err != nil || open[port] {
		t.Errorf("port %d is closed, but: %v, %v", port, open, err)
	}
	if _, err := listening(1 << 30); err == nil {
		t.Error("a process that is not there has ports")
	}
}
