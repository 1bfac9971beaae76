// Command checker runs inside a container of TestFollow. It asks for a service's
// name, for the names of its tasks, and connects to it, again and again, and
// writes every answer with its time as a line of JSON to a file.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Answer is one line. Times are nanoseconds; Got are addresses, or the task that
// answered a connection.
type Answer struct {
	Asked, Took int64
	Node, Kind  string
	Got         []string
	Err         string
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: checker NODE SERVICE FILE")
		os.Exit(2)
	}
	node, service := os.Args[1], os.Args[2]
	file, err := os.OpenFile(os.Args[3], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := json.NewEncoder(file)
	asks := []struct {
		kind string
		ask  func(string) ([]string, error)
	}{{"name", resolve}, {"tasks", func(s string) ([]string, error) { return resolve("tasks." + s) }}, {"vip", connect}}
	for range time.Tick(100 * time.Millisecond) {
		for _, a := range asks {
			start := time.Now()
			got, err := a.ask(service)
			line := Answer{Asked: start.UnixNano(), Took: int64(time.Since(start)), Node: node, Kind: a.kind, Got: got}
			if err != nil {
				line.Err = err.Error()
			}
			if err := out.Encode(line); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// resolve asks the container's own resolver once, without a cache.
func resolve(name string) ([]string, error) {
	c := dns.Client{Timeout: time.Second}
	a, _, err := c.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA), "127.0.0.11:53")
	if err != nil {
		return nil, err
	}
	if a.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s: %s", name, dns.RcodeToString[a.Rcode])
	}
	var got []string
	for _, rr := range a.Answer {
		if x, ok := rr.(*dns.A); ok {
			got = append(got, x.A.String())
		}
	}
	return got, nil
}

// connect asks skep/whoami which task it is.
func connect(service string) ([]string, error) {
	addrs, err := resolve(service)
	if err != nil || len(addrs) == 0 {
		return nil, fmt.Errorf("no address: %v", err)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext}
	resp, err := (&http.Client{Timeout: time.Second, Transport: tr}).Get("http://" + addrs[0] + "/")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(body), "\nTask: ")
	task, _, _ := strings.Cut(rest, "\n")
	return []string{task[strings.LastIndex(task, ".")+1:]}, nil
}
