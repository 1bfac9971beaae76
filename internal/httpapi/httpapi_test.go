package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/image"
)

// call makes one request and returns the status and the body.
func call(t *testing.T, srv *httptest.Server, method, path, body string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(raw)), resp.Header
}

func TestRequestsThatAreRefused(t *testing.T) {
	srv, _ := serve(t, &fakeEngine{state: container.State{Running: true}}, &fakeImages{})
	for _, c := range []struct {
		method, path, body string
		code               int
		message            string
	}{
		{"GET", "/v1.23/version", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/v1.99/version", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v1.41/nowhere", "", 404, "page not found"},
		{"GET", "/nowhere", "", 404, "page not found"},
		{"PATCH", "/v1.41/containers/json", "", 404, "page not found"},
		{"GET", "/v1.41/images/a/b/nothing", "", 404, "page not found"},
		{"GET", "/v1.41/containers/nosuch/json", "", 404, "No such container: nosuch"},
		{"POST", "/v1.41/containers/create", "{", 400, "invalid JSON: unexpected EOF"},
		{"POST", "/v1.41/containers/create", "[]", 400, "invalid JSON: json: cannot unmarshal array into Go value of type container.CreateRequest"},
		{"POST", "/v1.41/containers/create", `{"Image":"a"} {}`, 400, "unexpected content after JSON"},
		{"POST", "/v1.41/containers/create", "", 400, "invalid JSON: got EOF while reading request body"},
		{"POST", "/v1.41/containers/create", `{"Image":"absent"}`, 404, "No such image: absent:latest"},
		{"POST", "/v1.41/build", "", 501, "building images (docker build) is not built yet"},
		{"GET", "/v1.41/containers/box/archive?path=/", "", 501, "copying files out of a container (docker cp) is not built yet"},
		{"POST", "/v1.41/containers/box/update", "{", 501, "changing a container's resources or restart policy (docker update) is not built yet"},
		{"POST", "/v1.41/auth", "{}", 501, "checking credentials with a registry (docker login) is not built yet"},
		{"GET", "/v1.41/plugins/x/y/json", "", 404, `plugin "x/y" not found`},
		{"POST", "/v1.41/plugins/pull", "", 501, "managing plugins (docker plugin) is not built yet"},
		{"GET", "/v1.41/containers/json?filters=x", "", 400, "invalid filter: invalid character 'x' looking for beginning of value"},
		{"GET", "/v1.41/containers/json?limit=x", "", 400, `invalid value for limit: strconv.Atoi: parsing "x": invalid syntax`},
		{"GET", "/v1.41/containers/box/logs", "", 400, "Bad parameters: you must choose at least one stream"},
		{"POST", "/v1.41/containers/box/wait?condition=x", "", 400, `invalid condition: "x"`},
		{"POST", "/v1.41/networks/create", `{"Name":"a","IPAM":{"Config":[{"Subnet":"bogus"}]}}`, 400, "Invalid subnet bogus : invalid CIDR address: bogus"},
		{"POST", "/v1.41/networks/create", `{"Name":"host"}`, 403, "operation is not permitted on predefined host network"},
	} {
		t.Run(c.method+" "+c.path+" "+c.body, func(t *testing.T) {
			code, body, _ := call(t, srv, c.method, c.path, c.body)
			var got struct{ Message string }
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if code != c.code || got.Message != c.message {
				t.Errorf("got %d %q\nwant %d %q", code, got.Message, c.code, c.message)
			}
		})
	}
}

func TestBodyIsBounded(t *testing.T) {
	srv, _ := serve(t, &fakeEngine{}, &fakeImages{})
	huge := `{"Image":"` + strings.Repeat("a", maxBody) + `"}`
	code, body, _ := call(t, srv, "POST", "/containers/create", huge)
	if code != 400 || !strings.Contains(body, "larger than") {
		t.Errorf("got %d %.80s", code, body)
	}
}

func TestStatusOfErrorKinds(t *testing.T) {
	for want, err := range map[int]error{
		404: cluster.NotFoundf("x"), 400: cluster.Invalidf("x"), 409: cluster.Conflictf("x"), 503: cluster.Unavailablef("x"),
		501: cluster.NotImplementedf("x"), 403: cluster.Deniedf("x"), 304: errdefs.ErrNotModified, 500: errors.New("x"), 401: errdefs.ErrUnauthenticated,
	} {
		if got := status(fmt.Errorf("service %q: %w", "web", err)); got != want {
			t.Errorf("%v: got %d, want %d", err, got, want)
		}
	}
}

func TestServeEndsInOrderWithAFollowerOn(t *testing.T) {
	e := &fakeEngine{waits: make(chan engine.WaitResult)} // never ends
	s := &Server{Containers: e, Member: noMember{}, Log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	resp, err := http.Post("http://"+l.Addr().String()+"/containers/box/wait", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestPing(t *testing.T) {
	srv, _ := serve(t, &fakeEngine{}, &fakeImages{})
	for _, method := range []string{"GET", "HEAD"} {
		code, body, h := call(t, srv, method, "/_ping", "")
		want := map[bool]string{true: "OK", false: ""}[method == "GET"]
		if code != 200 || body != want {
			t.Errorf("%s: %d %q", method, code, body)
		}
		got := []string{h.Get("Api-Version"), h.Get("Ostype"), h.Get("Docker-Experimental"), h.Get("Swarm"), h.Get("Builder-Version")}
		if diff := cmp.Diff([]string{MaxAPIVersion, "linux", "false", "inactive", "1"}, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestStartAndStopSayWhenNothingChanges(t *testing.T) {
	e := &fakeEngine{}
	srv, _ := serve(t, e, &fakeImages{})
	for _, c := range []struct {
		running bool
		action  string
		want    int
	}{{false, "start", 204}, {true, "start", 304}, {true, "stop?t=3", 204}, {false, "stop", 304}} {
		e.state = container.State{Running: c.running}
		if code, body, _ := call(t, srv, "POST", "/containers/box/"+c.action, ""); code != c.want || body != "" {
			t.Errorf("%s of running=%v: %d %q, want %d", c.action, c.running, code, body, c.want)
		}
	}
	if e.stopped == nil || e.stopped.Timeout == nil || *e.stopped.Timeout != 3 {
		t.Errorf("stop's options: %+v", e.stopped)
	}
}

func TestWaitAnswersBeforeTheEnd(t *testing.T) {
	e := &fakeEngine{waits: make(chan engine.WaitResult, 1)}
	_, c := serve(t, e, &fakeImages{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// ContainerWait returns once the header is there: nothing has ended yet.
	res := c.ContainerWait(ctx, "box", client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	e.waits <- engine.WaitResult{ExitCode: 7, Err: "oops"}
	select {
	case got := <-res.Result:
		if got.StatusCode != 7 || got.Error == nil || got.Error.Message != "oops" || e.waited != container.WaitConditionNextExit {
			t.Errorf("got %+v, waited for %q", got, e.waited)
		}
	case err := <-res.Error:
		t.Fatal(err)
	}
}

func TestLogs(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	e := &fakeEngine{logs: []engine.LogEntry{
		{Time: at, Stream: "stdout", Line: []byte("one\n")}, {Time: at, Stream: "stderr", Line: []byte("two\n")},
	}}
	_, c := serve(t, e, &fakeImages{})
	read := func(opts client.ContainerLogsOptions) (string, string, error) {
		opts.ShowStdout, opts.ShowStderr = true, true
		rc, err := c.ContainerLogs(t.Context(), "box", opts)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		var out, errs bytes.Buffer
		if e.tty {
			_, err = io.Copy(&out, rc)
		} else {
			_, err = stdcopy.StdCopy(&out, &errs, rc)
		}
		return out.String(), errs.String(), err
	}
	out, errs, err := read(client.ContainerLogsOptions{Timestamps: true, Tail: "5", Follow: true})
	if out != "2026-01-02T03:04:05.000000006Z one\n" || errs != "2026-01-02T03:04:05.000000006Z two\n" || err != nil {
		t.Errorf("got %q, %q, %v", out, errs, err)
	}
	if e.asked.Tail != 5 || !e.asked.Follow {
		t.Errorf("asked %+v", e.asked)
	}
	e.logs[0].Attrs = map[string]string{"tier": "a b,c=d", "k&y": "", "COLOUR": "red"}
	out, errs, err = read(client.ContainerLogsOptions{Timestamps: true, Details: true})
	if out != "2026-01-02T03:04:05.000000006Z COLOUR=red,k%26y=,tier=a+b%2Cc%3Dd one\n" || errs != "2026-01-02T03:04:05.000000006Z  two\n" || err != nil {
		t.Errorf("with details: %q, %q, %v", out, errs, err)
	}
	e.tty = true
	if out, _, _ := read(client.ContainerLogsOptions{Tail: "all"}); out != "one\ntwo\n" || e.asked.Tail != -1 {
		t.Errorf("got %q, asked %+v", out, e.asked)
	}
	e.tty, e.logErr = false, errors.New("disk on fire")
	if _, _, err := read(client.ContainerLogsOptions{}); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("late error: %v", err)
	}
}

func TestAttachCarriesBothWays(t *testing.T) {
	e := &fakeEngine{}
	e.attach = func(ctx context.Context, o engine.AttachOptions) error {
		o.Ready()
		in, err := io.ReadAll(o.Streams.Stdin)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the end of the input ended the request: %w", ctx.Err())
		}
		fmt.Fprintf(o.Streams.Stdout, "out:%s", in)
		fmt.Fprintf(o.Streams.Stderr, "err:%s", in)
		return nil
	}
	_, c := serve(t, e, &fakeImages{})
	conn, err := c.ContainerAttach(t.Context(), "box", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if mt, _ := conn.MediaType(); mt != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %q", mt)
	}
	io.WriteString(conn.Conn, "hello")
	conn.CloseWrite()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, conn.Reader); err != nil {
		t.Fatal(err)
	}
	if out.String() != "out:hello" || errs.String() != "err:hello" {
		t.Errorf("got %q, %q", out.String(), errs.String())
	}
}

func TestAttachFailsAsAnOrdinaryAnswer(t *testing.T) {
	e := &fakeEngine{attach: func(context.Context, engine.AttachOptions) error {
		return cluster.Conflictf("You cannot attach to a stopped container, start it first")
	}}
	srv, _ := serve(t, e, &fakeImages{})
	code, body, _ := call(t, srv, "POST", "/containers/box/attach?stream=1", "")
	if code != 409 || !strings.Contains(body, "start it first") {
		t.Errorf("%d %s", code, body)
	}
}

func TestExecTellsALateFailureOnItsStream(t *testing.T) {
	e := &fakeEngine{exec: func(_ bool, size *[2]uint, st engine.Streams, ready func()) error {
		ready()
		return fmt.Errorf("exec failed: not found")
	}}
	_, c := serve(t, e, &fakeImages{})
	conn, err := c.ExecAttach(t.Context(), "e0", client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, conn.Reader); err != nil || !strings.Contains(errs.String(), "exec failed: not found") {
		t.Errorf("got %q, %q, %v", out.String(), errs.String(), err)
	}
}

func TestImageNamesMayHoldSlashes(t *testing.T) {
	i := &fakeImages{}
	srv, _ := serve(t, &fakeEngine{}, i)
	call(t, srv, "GET", "/images/reg.example:5000/a/b:1/json", "")
	call(t, srv, "GET", "/v1.41/images/a%2Fb/json", "")
	call(t, srv, "POST", "/images/a/b:1/tag?repo=c/d&tag=2", "")
	want := []string{"inspect reg.example:5000/a/b:1", "inspect a/b", "tag a/b:1 c/d:2"}
	if diff := cmp.Diff(want, i.calls); diff != "" {
		t.Error(diff)
	}
}

func TestPull(t *testing.T) {
	i := &fakeImages{pull: func(ref string, p image.Progress) error {
		if ref == "absent:1" {
			return cluster.NotFoundf("pull access denied for absent")
		}
		p(jsonstream.Message{Status: "Pulling " + ref})
		return errors.New("cut off")
	}}
	srv, _ := serve(t, &fakeEngine{}, i)
	code, body, _ := call(t, srv, "POST", "/images/create?fromImage=absent&tag=1", "")
	if code != 404 || body != `{"message":"pull access denied for absent"}` {
		t.Errorf("%d %s", code, body)
	}
	code, body, _ = call(t, srv, "POST", "/images/create?fromImage=a/b&tag=sha256:00", "")
	want := `{"status":"Pulling a/b@sha256:00"}` + "\n" + `{"errorDetail":{"message":"cut off"},"error":"cut off"}`
	if code != 200 || body != want {
		t.Errorf("%d %s", code, body)
	}
}

func TestOldClientsGetTheShapesTheyKnow(t *testing.T) {
	e := &fakeEngine{
		list:   []container.Summary{{ID: "c", ImageID: "sha256:aa"}},
		events: []events.Message{{Type: "container", Action: "start", Actor: events.Actor{ID: "b0", Attributes: map[string]string{"image": "a"}}}},
	}
	srv, _ := serve(t, e, &fakeImages{})
	for _, c := range []struct {
		path   string
		has    []string
		hasNot []string
	}{
		{"/v1.42/images/json", []string{`"VirtualSize":7`, `"<none>:<none>"`, `"Containers":1`}, nil},
		{"/v1.44/images/json", []string{`"RepoTags":[]`}, []string{"VirtualSize", "<none>"}},
		{"/v1.41/events?until=1", []string{`"status":"start"`, `"id":"b0"`, `"from":"a"`}, nil},
		{"/v1.52/events?until=1", []string{`"Action":"start"`}, []string{`"status"`}},
	} {
		_, body, _ := call(t, srv, "GET", c.path, "")
		for _, s := range c.has {
			if !strings.Contains(body, s) {
				t.Errorf("%s lacks %s: %s", c.path, s, body)
			}
		}
		for _, s := range c.hasNot {
			if strings.Contains(body, s) {
				t.Errorf("%s has %s: %s", c.path, s, body)
			}
		}
	}
}

func TestSaveStreams(t *testing.T) {
	srv, _ := serve(t, &fakeEngine{}, &fakeImages{})
	if code, body, h := call(t, srv, "GET", "/images/get?names=a&names=b", ""); code != 200 || body != "a,b" || h.Get("Content-Type") != "application/x-tar" {
		t.Errorf("%d %q %v", code, body, h)
	}
	if code, body, _ := call(t, srv, "GET", "/images/get", ""); code != 400 {
		t.Errorf("%d %q", code, body)
	}
}

func TestParseTime(t *testing.T) {
	for raw, want := range map[string]time.Time{
		"":                     {},
		"0":                    {},
		"100":                  time.Unix(100, 0),
		"100.5":                time.Unix(100, 500000000),
		"100.000000001":        time.Unix(100, 1),
		"1970-01-01T00:01:40Z": time.Unix(100, 0),
	} {
		got, err := parseTime("since", raw)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v; want %v", raw, got, err, want)
		}
	}
	for _, raw := range []string{"x", "1.x", "1.-5"} {
		if got, err := parseTime("since", raw); err == nil {
			t.Errorf("%q: got %v, want an error", raw, got)
		}
	}
}

func FuzzFilterParam(f *testing.F) {
	f.Add(`{"a":{"b":true}}`)
	f.Add(`{"a":["b"]}`)
	f.Fuzz(func(t *testing.T, raw string) {
		filters, err := filterParam(map[string][]string{"filters": {raw}})
		if err == nil {
			pruneFilter(filters)
			matchNetwork(network.Inspect{}, filters)
		}
	})
}
