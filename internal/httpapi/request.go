package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
)

// maxBody bounds a JSON request. The largest legitimate one is a config's or
// secret's payload in base64, under 2 MB.
const maxBody = 4 << 20

// maxIgnored bounds what is read of a body that is too large, and forgotten.
const maxIgnored = 8 * maxBody

// readJSON decodes a request's body into v as strictly as Docker does: it must
// be JSON by its type, one value, and nothing after it. Unknown fields are let
// pass, since newer clients send them.
func readJSON(r *http.Request, v any) error {
	if err := checkJSON(r); err != nil {
		return err
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			// Who is cut off while sending does not hear why.
			io.CopyN(io.Discard, r.Body, maxIgnored)
			return cluster.Invalidf("invalid JSON: request body is larger than %d bytes", maxBody)
		case errors.Is(err, io.EOF):
			return cluster.Invalidf("invalid JSON: got EOF while reading request body")
		}
		return cluster.Invalidf("invalid JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) { // More would let a stray bracket pass
		return cluster.Invalidf("unexpected content after JSON")
	}
	if bytes.Equal(raw, []byte("null")) { // which would read as everything left out
		return cluster.Invalidf("invalid JSON: the request body is null")
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return cluster.Invalidf("invalid JSON: %v", err)
	}
	return nil
}

// readOptionalJSON is readJSON for requests whose body may be absent.
func readOptionalJSON(r *http.Request, v any) error {
	if r.ContentLength == 0 || r.Body == http.NoBody {
		return nil
	}
	return readJSON(r, v)
}

func checkJSON(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if ct == "" && r.ContentLength == 0 {
		return nil
	}
	if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
		return cluster.Invalidf("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// boolParam is how Docker reads a flag in a query: absent, 0, no, false and
// none are false, anything else is true.
func boolParam(q url.Values, name string) bool {
	switch strings.ToLower(strings.TrimSpace(q.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// intParam returns a number from a query, or nil when it is absent.
func intParam(q url.Values, name string) (*int, error) {
	if q.Get(name) == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil {
		return nil, cluster.Invalidf("invalid value for %s: %v", name, err)
	}
	return &n, nil
}

// filterParam reads the filters of a query: {"key":{"value":true}}, or the old
// {"key":["value"]}.
func filterParam(q url.Values) (filters.Filters, error) {
	raw := q.Get("filters")
	if raw == "" {
		return nil, nil
	}
	var f filters.Filters
	if json.Unmarshal([]byte(raw), &f) == nil {
		return f, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(raw), &lists); err != nil {
		return nil, cluster.Invalidf("invalid filter: %v", err)
	}
	f = make(filters.Filters, len(lists))
	for key, values := range lists {
		f[key] = make(map[string]bool, len(values))
		for _, v := range values {
			f[key][v] = true
		}
	}
	return f, nil
}

// knownFilters reads the filters of a request for a noun that knows no others.
func knownFilters(r *http.Request, known ...string) (filters.Filters, error) {
	f, err := filterParam(r.URL.Query())
	if err != nil {
		return nil, err
	}
	return f, filters.Check(f, known...)
}

// boolFilter reads a filter whose only values are true and false (1 and 0).
func boolFilter(f filters.Filters, key string, absent bool) (bool, error) {
	values := f[key]
	if len(values) == 0 {
		return absent, nil
	}
	isTrue := values["1"] || values["true"]
	isFalse := values["0"] || values["false"]
	if isTrue == isFalse || len(values) > 1 {
		return false, cluster.Invalidf("invalid filter '%s'", key)
	}
	return isTrue, nil
}

// timeParam reads a time; see filters.Moment. Absent and "0" are the zero time.
func timeParam(q url.Values, name string) (time.Time, error) {
	return parseTime(name, q.Get(name))
}

func parseTime(name, raw string) (time.Time, error) {
	if raw == "" || raw == "0" {
		return time.Time{}, nil
	}
	if t, ok := filters.Moment(raw, time.Now()); ok {
		return t, nil
	}
	return time.Time{}, cluster.Invalidf("invalid value for %q: %q", name, raw)
}

// platformParam reads the platform of a query: os[/arch[/variant]], or the JSON
// form newer clients send. Absent is nil: the host's own.
func platformParam(q url.Values) (*ocispec.Platform, error) {
	raw := q.Get("platform")
	if raw == "" {
		return nil, nil
	}
	var p ocispec.Platform
	if strings.HasPrefix(raw, "{") {
		if err := json.Unmarshal([]byte(raw), &p); err != nil {
			return nil, cluster.Invalidf("failed to parse platform: %v", err)
		}
		return &p, nil
	}
	parts := strings.Split(strings.ToLower(raw), "/")
	if len(parts) > 3 || parts[0] == "" {
		return nil, cluster.Invalidf("%q: invalid platform: expected os[/arch[/variant]]", raw)
	}
	p.OS = parts[0]
	if len(parts) > 1 {
		p.Architecture = normalArch(parts[1])
	}
	if len(parts) > 2 {
		p.Variant = parts[2]
	}
	return &p, nil
}

func normalArch(arch string) string {
	switch arch {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armhf", "armel":
		return "arm"
	}
	return arch
}

// authHeader decodes the registry credentials a client sends along. As with
// Docker, what cannot be decoded counts as none.
func authHeader(r *http.Request) *registry.AuthConfig {
	raw := r.Header.Get(registry.AuthHeader)
	if raw == "" {
		return nil
	}
	auth, err := authconfig.Decode(raw)
	if err != nil || auth == nil || *auth == (registry.AuthConfig{}) {
		return nil
	}
	return auth
}
