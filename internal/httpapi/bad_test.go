package httpapi

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/filters"
)

// paths returns every route of the API that takes a JSON body, with something
// in the place of its ids.
func bodyRoutes(s *Server) (all []string) {
	for _, rt := range s.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if method != "POST" {
			continue
		}
		switch {
		case strings.HasSuffix(path, "/create") && !strings.HasPrefix(path, "/images"),
			strings.HasSuffix(path, "/update") && path != "/containers/{id}/update", strings.HasSuffix(path, "connect"),
			strings.HasPrefix(path, "/swarm/") && path != "/swarm/leave",
			path == "/containers/{id}/exec", path == "/exec/{id}/start":
			all = append(all, strings.NewReplacer("{id}", "box", "{name}", "box").Replace(path))
		}
	}
	return all
}

// do sends a request as it stands and returns the status and the error's text.
func do(t *testing.T, srv *httptest.Server, method, path, contentType string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Message string }
	if err := json.Unmarshal(raw, &e); err != nil && resp.StatusCode >= 400 {
		t.Errorf("%s %s: %d without a JSON error: %.100s", method, path, resp.StatusCode, raw)
	}
	return resp.StatusCode, e.Message
}

// TestBadBodies sends each route what is not its JSON. All of it is a 400 with
// words, and nothing reaches the rooms behind.
func TestBadBodies(t *testing.T) {
	sw := &fakeSwarm{}
	srv, _ := serveSwarm(t, sw, &fakeNetworks{})
	routes := bodyRoutes(&Server{Member: sw, Log: nil})
	if len(routes) < 18 {
		t.Fatal(routes)
	}
	for _, path := range routes {
		for _, c := range []struct{ name, contentType, body, want string }{
			{"malformed", "application/json", `{"Name":`, "invalid JSON: unexpected EOF"},
			{"garbage", "application/json", "\x00\xff<xml>", "invalid JSON: invalid character"},
			{"wrong type", "application/json", `[1,2]`, "invalid JSON: json: cannot unmarshal array"},
			{"null", "application/json", ` null `, "invalid JSON: the request body is null"},
			{"two values", "application/json", `{} {}`, "unexpected content after JSON"},
			{"a stray bracket", "application/json", `{}}`, "unexpected content after JSON"},
			{"trailing garbage", "application/json", `{}xyz`, "unexpected content after JSON"},
			{"deep", "application/json", strings.Repeat(`{"a":`, 100_000), "invalid JSON: "},
			{"deep list", "application/json", strings.Repeat(`[`, 1_000_000), "invalid JSON: "},
			{"text", "text/plain", `{}`, "unsupported Content-Type header (text/plain): must be 'application/json'"},
			{"form", "application/x-www-form-urlencoded", `{}`, "unsupported Content-Type header"},
			{"no type", "", `{}`, "unsupported Content-Type header (): must be 'application/json'"},
			{"broken type", "application/json;;=", `{}`, "unsupported Content-Type header"},
		} {
			code, msg := do(t, srv, "POST", path, c.contentType, strings.NewReader(c.body))
			if code != 400 || !strings.Contains(msg, c.want) {
				t.Errorf("%s %s: %d %.300q, want 400 %q", path, c.name, code, msg, c.want)
			}
		}
		if path == "/volumes/create" || strings.HasPrefix(path, "/exec/") {
			continue // their body may be absent
		}
		if code, msg := do(t, srv, "POST", path, "application/json", nil); code != 400 || msg != "invalid JSON: got EOF while reading request body" {
			t.Errorf("%s without a body: %d %q", path, code, msg)
		}
	}
	if len(sw.calls) != 0 {
		t.Errorf("reached the swarm: %v", sw.calls)
	}
}

// endless is a JSON string that never ends.
type endless struct{ sent int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	if e.sent == 0 {
		copy(p, `{"Name":"`)
	}
	e.sent += len(p)
	if e.sent > 1<<30 {
		return 0, io.EOF
	}
	return len(p), nil
}

// TestHugeBodies: a body without end is cut off at the bound, and memory with it.
func TestHugeBodies(t *testing.T) {
	srv, _ := serveSwarm(t, &fakeSwarm{}, &fakeNetworks{})
	for _, path := range []string{"/services/create", "/containers/create", "/networks/create", "/secrets/create", "/swarm/init"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		body := &endless{}
		req := httptest.NewRequestWithContext(t.Context(), "POST", path, body)
		req.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		srv.Config.Handler.ServeHTTP(rec, req)
		runtime.ReadMemStats(&after)
		if rec.Code != 400 || !strings.Contains(rec.Body.String(), fmt.Sprintf("request body is larger than %d bytes", maxBody)) {
			t.Errorf("%s: %d %.200s", path, rec.Code, rec.Body)
		}
		if body.sent > 2*maxBody+maxIgnored || after.TotalAlloc-before.TotalAlloc > 16*maxBody {
			t.Errorf("%s: %d bytes were read, %d allocated", path, body.sent, after.TotalAlloc-before.TotalAlloc)
		}
	}
}

// TestBadPaths: versions nobody speaks, routes there are none of, queries that
// say nothing.
func TestBadPaths(t *testing.T) {
	srv, _ := serveSwarm(t, &fakeSwarm{}, &fakeNetworks{})
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "/v1.23/version", 400, "client version 1.23 is too old. Minimum supported API version is 1.24"},
		{"GET", "/v0/version", 400, "client version 0 is too old"},
		{"GET", "/v1.99/version", 400, "client version 1.99 is too new. Maximum supported API version is " + MaxAPIVersion},
		{"GET", "/v99999999999999999999.1/version", 400, "is too new"},
		{"GET", "/v1.41.2/version", 404, "page not found"},
		{"GET", "/vx/version", 404, "page not found"},
		{"GET", "/v1.41/", 404, "page not found"},
		{"GET", "/nothing", 404, "page not found"},
		{"PATCH", "/services", 404, "page not found"},
		{"GET", "/services/create/x", 404, "page not found"},
		{"GET", "/services?filters=x", 400, "invalid filter: invalid character"},
		{"GET", "/services?filters=[]", 400, "invalid filter: json: cannot unmarshal array"},
		{"GET", "/services?filters=" + `{"nope":["a"]}`, 400, "nvalid filter 'nope'"},
		{"GET", "/tasks?filters=" + `{"a":{"b":1}}`, 400, "invalid filter: "},
		{"POST", "/services/web/update", 400, "invalid service version ''"},
		{"POST", "/services/web/update?version=-1", 400, "invalid service version '-1'"},
		{"POST", "/services/web/update?version=x", 400, "invalid service version 'x'"},
		{"POST", "/services/web/update?version=99999999999999999999", 400, "value out of range"},
		{"POST", "/services/web/update?version=1e3", 400, "invalid service version '1e3'"},
		{"POST", "/services/web/update?version=2&registryAuthFrom=x", 400, `unsupported registryAuthFrom value: "x"`},
		{"POST", "/services/web/update?version=2&rollback=x", 400, "unrecognized rollback option x"},
		{"POST", "/nodes/n/update?version=x", 400, "invalid node version 'x'"},
		{"POST", "/swarm/update?version=", 400, "invalid swarm version ''"},
		{"GET", "/containers/json?limit=x", 400, "invalid value for limit"},
		{"POST", "/containers/box/stop?t=x", 400, "invalid value for t"},
		{"POST", "/containers/box/resize?h=-1&w=2", 400, `invalid resize height "-1"`},
		{"POST", "/containers/box/resize?h=1&w=99999999999", 400, `invalid resize width "99999999999"`},
		{"POST", "/containers/box/wait?condition=x", 400, `invalid condition: "x"`},
		{"GET", "/containers/box/logs", 400, "you must choose at least one stream"},
		{"GET", "/containers/box/logs?stdout=1&since=x", 400, `invalid value for "since": "x"`},
		{"GET", "/services/web/logs?stdout=1&until=1.-5", 400, `invalid value for "until"`},
		{"GET", "/system/df?type=x", 400, "unknown object type: x"},
		{"GET", "/networks/" + long, 404, "bytes left out"},
		{"GET", "/services?filters=" + long, 400, "invalid filter: "},
		{"POST", "/services/" + strings.Repeat("y", 10_000) + "/update?version=" + long[:5000], 400, "bytes left out"},
	} {
		var body io.Reader
		if c.method == "POST" {
			body = strings.NewReader("{}")
		}
		code, msg := do(t, srv, c.method, strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(c.path), "application/json", body)
		if code != c.code || !strings.Contains(msg, c.want) || len(msg) > 2*maxMessage {
			t.Errorf("%s %.100s: %d %.300q, want %d %q", c.method, c.path, code, msg, c.code, c.want)
		}
	}
}

// TestPanicIsAnAnswer: what a room panics over ends its request alone.
func TestPanicIsAnAnswer(t *testing.T) {
	srv, _ := serve(t, &fakeEngine{}, &fakeImages{}) // its Pause panics
	code, msg := do(t, srv, "POST", "/containers/box/pause", "", nil)
	if code != 500 || !strings.Contains(msg, "POST /containers/box/pause met a defect of the daemon") {
		t.Errorf("%d %q", code, msg)
	}
	if code, _ := do(t, srv, "GET", "/_ping", "", nil); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}

// FuzzQuery feeds anything to what reads queries and the registry's header.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"1", "-1", "1.5", "99999999999999999999", "2020-01-01", "linux/amd64/v8", `{"os":"linux"}`, "1h", "9223372036854775807.999999999", "\x00", `{"a":["b"]}`, "eyJhIjoiYiJ9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := map[string][]string{"v": {s}, "platform": {s}, "filters": {s}, "since": {s}, "until": {s}, "tail": {s}, "stdout": {s}}
		intParam(q, "v")
		boolParam(q, "v")
		platformParam(q)
		if opts, err := logsOptions(q); err == nil && opts.Tail < -1 {
			t.Errorf("tail %d", opts.Tail)
		}
		if got, err := filterParam(q); err == nil {
			filters.Check(got, "a")
			boolFilter(got, "a", true)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Registry-Auth", s)
		authHeader(r)
		if out := clip(s); len(out) > 2*maxMessage {
			t.Errorf("%d bytes", len(out))
		}
		r = httptest.NewRequest("GET", "/", nil)
		r.URL.Path = "/v" + s
		withVersion(r)
	})
}
