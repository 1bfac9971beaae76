// Command whoami is the small web server in the image skep/whoami, which is on every
// node of a swarm: it tells who answers. Over HTTP and over UDP on one port it
// answers in plain text with its service, task, slot, node, addresses and host
// name, and with the address it sees the client at.
//
//	/             who answers
//	/healthz      ok
//	/slow?d=2s    who answers, after a while
//
// On SIGTERM it takes no more connections, finishes what it has begun and ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", ":80", "address to answer on, TCP and UDP")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *listen, lastWord, func(net.Addr) {}); err != nil {
		fmt.Fprintln(os.Stderr, "whoami:", err)
		os.Exit(1)
	}
}

// lastWord is how long a connection that is kept alive may still send a request
// after the signal to stop; the answer to it says that it is the last.
const lastWord = 500 * time.Millisecond

const longest = 5 * time.Minute // of a slow request

// run serves until ctx ends and the requests under way are answered. It calls
// ready with its address once it listens.
func run(ctx context.Context, listen string, lastWord time.Duration, ready func(net.Addr)) error {
	tcp, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		tcp.Close()
		return err
	}
	s := &server{}
	web := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { s.datagrams(udp) })
	served := make(chan error, 1)
	wg.Go(func() { served <- web.Serve(tcp) })
	ready(tcp.Addr())
	select {
	case <-ctx.Done():
		s.draining.Store(true)
		tcp.Close()
		<-time.After(lastWord)
		err = web.Shutdown(context.Background())
	case err = <-served:
	}
	udp.Close()
	wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

type server struct{ draining atomic.Bool }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET is answered", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	switch r.URL.Path {
	case "/healthz":
		fmt.Fprintln(w, "ok")
		return
	case "/slow":
		if err := pause(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	fmt.Fprint(w, answer(r.RemoteAddr))
}

func pause(r *http.Request) error {
	d, err := time.ParseDuration(r.URL.Query().Get("d"))
	if err != nil || d < 0 || d > longest {
		return fmt.Errorf("d is a duration such as 2s, at most %s", longest)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
	return nil
}

// datagrams answers each datagram with one.
func (s *server) datagrams(conn net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		_, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that answers an earlier datagram
		}
		conn.WriteTo([]byte(answer(from.String())), from)
	}
}

// answer says who this is, a fact a line. What is not known is "-": outside of
// a swarm there is no service.
func answer(client string) string {
	var b strings.Builder
	for _, f := range [][2]string{
		{"Service", "SKEP_SERVICE_NAME"}, {"Task", "SKEP_TASK_NAME"}, {"Slot", "SKEP_TASK_SLOT"}, {"Node", "SKEP_NODE_HOSTNAME"},
	} {
		fmt.Fprintf(&b, "%s: %s\n", f[0], known(os.Getenv(f[1])))
	}
	host, _ := os.Hostname()
	fmt.Fprintf(&b, "Hostname: %s\n", known(host))
	for _, a := range addresses() {
		fmt.Fprintf(&b, "Address: %s\n", a)
	}
	fmt.Fprintf(&b, "Client: %s\n", client)
	return b.String()
}

// known hides a template that nobody has filled in, as in a plain container.
func known(v string) string {
	if v == "" || strings.Contains(v, "{{") {
		return "-"
	}
	return v
}

func addresses() (all []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			all = append(all, n.IP.String())
		}
	}
	return all
}
