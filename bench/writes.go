package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	writers      = 8
	writeSeconds = 2
)

// writes has eight clients create configs, and services without replicas, on
// three managers whose disks are one.
func writes(ctx context.Context, b *bench) error {
	if err := b.swarms(ctx, 3, 3); err != nil {
		return err
	}
	config := func(name string) any { return map[string]any{"Name": name, "Data": "eHh4"} }
	empty := func(name string) any { return service(name, 0) }
	return b.each(ctx, func(run int, s *side) error {
		lead, others, err := s.leader(ctx)
		if err != nil {
			return err
		}
		for _, w := range []struct {
			name, noun string
			at         *host
			clients    int
			make       func(string) any
		}{
			{"writes-configs", "configs", lead, writers, config},
			{"writes-services", "services", lead, writers, empty},
			{"writes-configs-at-follower", "configs", others[0], writers, config},
			{"writes-configs-one-client", "configs", lead, 1, config},
		} {
			m, err := s.meter()
			if err != nil {
				return err
			}
			n, err := w.at.createMany(ctx, w.noun, fmt.Sprint(w.name, run), w.clients, w.make)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			took := m.wall()
			cpu, err := m.used()
			if err != nil {
				return err
			}
			b.record(s, w.name, "1/s", float64(n)/took)
			b.record(s, w.name+"-cpu", "CPU ms each", 1000*cpu/float64(n))
			if err := lead.removeAll(ctx, w.noun); err != nil {
				return err
			}
		}
		return nil
	})
}

// createMany creates objects for a while and returns how many. The clients share
// the managers' cores, so each is as cheap as can be: one connection, on which a
// request is written and its answer read.
func (h *host) createMany(ctx context.Context, noun, prefix string, clients int, body func(name string) any) (int64, error) {
	var n atomic.Int64
	errs := make(chan error, clients)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	end := time.Now().Add(writeSeconds * time.Second)
	for c := range clients {
		go func() {
			errs <- h.onConn(ctx, func(conn net.Conn) error {
				answers := bufio.NewReader(conn)
				for i := 0; time.Now().Before(end); i++ {
					if err := create(conn, answers, noun, body(fmt.Sprintf("%s-%d-%d", prefix, c, i))); err != nil {
						return err
					}
					n.Add(1)
				}
				return nil
			})
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			return 0, err
		}
	}
	return n.Load(), nil
}

// onConn calls f with a connection to the host's API, which is closed when ctx ends.
func (h *host) onConn(ctx context.Context, f func(net.Conn) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", h.m.Socket())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return f(conn)
}

// create is one request and its answer.
func create(conn net.Conn, answers *bufio.Reader, noun string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req := fmt.Appendf(nil, "POST %s/%s/create HTTP/1.1\r\nHost: host\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", apiVersion, noun, len(body))
	if _, err := conn.Write(append(req, body...)); err != nil {
		return err
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		return statusError{resp.StatusCode, string(b)}
	}
	return err
}

// removeAll removes all objects of a kind, eight at a time.
func (h *host) removeAll(ctx context.Context, noun string) error {
	var all []struct{ ID string }
	if err := h.call(ctx, "GET", "/"+noun, nil, &all); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for c := range writers {
		wg.Go(func() {
			for i := c; i < len(all) && errs[c] == nil; i += writers {
				errs[c] = h.call(ctx, "DELETE", "/"+noun+"/"+all[i].ID, nil, nil)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
