// Command bench, inside a container, is the other end of what bench measures: a
// web server, a sink and a source of bytes, a client that waits for a name.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 1 && args[0] == "check":
		return check()
	case len(args) == 1 && args[0] == "sink":
		return sink()
	case len(args) == 4 && args[0] == "stream":
		return stream(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "resolve":
		return resolve(args[1])
	}
	return errors.New("usage: bench serve | check | sink | stream ADDR STREAMS SECONDS | resolve NAME")
}

// serve answers HTTP on port 80 and ends in order on SIGTERM.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &http.Server{Addr: ":80", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(5 * time.Millisecond) // some work, so that a stop meets requests under way
		fmt.Fprintln(w, name)
	})}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	return s.Shutdown(context.Background())
}

// check is the health check of serve: its port is open.
func check() error {
	c, err := net.DialTimeout("tcp", "127.0.0.1:80", time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// sink reads what comes to port 5000.
func sink() error {
	l, err := net.Listen("tcp", ":5000")
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 256<<10)
			// Not io.Copy, which would splice: a program reads its bytes.
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
	}
}

// stream writes to a sink over some connections and prints Gbit/s.
func stream(addr, streams, seconds string) error {
	n, err := strconv.Atoi(streams)
	if err != nil {
		return err
	}
	secs, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	var conns []net.Conn
	for range n {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	var sent atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	end := began.Add(time.Duration(secs * float64(time.Second)))
	for _, c := range conns {
		wg.Go(func() {
			buf := make([]byte, 128<<10)
			c.SetDeadline(end.Add(time.Second))
			for time.Now().Before(end) {
				w, err := c.Write(buf)
				sent.Add(int64(w))
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	_, err = fmt.Fprintf(os.Stdout, "%.3f\n", float64(sent.Load())*8/time.Since(began).Seconds()/1e9)
	return err
}

// resolve asks Docker's resolver for a name until it has an address, and prints
// the time then in nanoseconds since 1970. A question that is not answered at
// once is asked again.
func resolve(name string) error {
	client := &dns.Client{Timeout: 50 * time.Millisecond}
	question := new(dns.Msg).SetQuestion(name+".", dns.TypeA)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		got, _, err := client.Exchange(question, "127.0.0.11:53")
		if err == nil && len(got.Answer) > 0 {
			_, err := io.WriteString(os.Stdout, strconv.FormatInt(time.Now().UnixNano(), 10)+"\n")
			return err
		}
	}
	return errors.New(name + " has no address after a minute")
}
