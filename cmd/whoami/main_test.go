package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// start runs a server and returns its address, what stops it, and its end.
func start(t *testing.T) (addr string, stop func(), done chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ready := make(chan net.Addr, 1)
	done = make(chan error, 1)
	go func() { done <- run(ctx, "127.0.0.1:0", 3*time.Second, func(a net.Addr) { ready <- a }) }()
	select {
	case a := <-ready:
		return a.String(), cancel, done
	case err := <-done:
		t.Fatal(err)
		return
	}
}

func TestAnswers(t *testing.T) {
	t.Setenv("SKEP_SERVICE_NAME", "web")
	t.Setenv("SKEP_TASK_SLOT", "3")
	t.Setenv("SKEP_NODE_HOSTNAME", "{{.Node.Hostname}}")
	addr, _, _ := start(t)
	resp, err := http.Get("http://" + addr + "/some/path")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Service: web\n", "Slot: 3\n", "Node: -\n", "Task: -\n", "Hostname: ", "Client: 127.0.0.1:"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("HTTP said %q, not %q", body, want)
		}
	}
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(conn, "who?")
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buf[:n]); !strings.Contains(got, "Service: web\n") || !strings.Contains(got, "Client: "+conn.LocalAddr().String()+"\n") {
		t.Errorf("UDP said %q", got)
	}
	for path, want := range map[string]int{"/healthz": 200, "/slow?d=1ms": 200, "/slow?d=forever": 400, "/slow?d=9h": 400} {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestDrainLosesNoRequest(t *testing.T) {
	addr, stop, done := start(t)
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c, bufio.NewReader(c)
	}
	ask := func(c net.Conn, path string) {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
	}
	read := func(r *bufio.Reader) *http.Response {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal("a request was lost: ", err)
		}
		io.Copy(io.Discard, resp.Body)
		return resp
	}
	kept, keptIn := dial()
	ask(kept, "/")
	read(keptIn)
	slow, slowIn := dial()
	ask(slow, "/slow?d=1s")
	other, otherIn := dial() // its answer shows that the server has read the slow request by now or will
	ask(other, "/")
	read(otherIn)
	stop()
	for { // until new connections are refused
		c, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		c.Close()
	}
	ask(kept, "/")
	if resp := read(keptIn); !resp.Close {
		t.Error("a connection is kept alive by a server that ends")
	}
	if resp := read(slowIn); resp.StatusCode != 200 {
		t.Errorf("slow request: %d", resp.StatusCode)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
