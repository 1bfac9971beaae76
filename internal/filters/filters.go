// Package filters is what --filter asks for, as the Engine API carries it: which
// keys a list knows, what a time among their values means, and whether an object
// passes. It knows no noun and parses no request; the meaning of a key that is not here is its room's own. control,
// httpapi, engine, image and volume call it.
package filters

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/cluster"
)

// Filters are a key's values, by key. A key that is not there is passed by
// everything.
type Filters = map[string]map[string]bool

// Check refuses a key that is not known, in Docker's words.
func Check(f Filters, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(known, key) {
			return cluster.Invalidf("Invalid filter '%s'", key)
		}
	}
	return nil
}

// Any reports whether one of a key's values matches.
func Any(f Filters, key string, match func(value string) bool) bool {
	if len(f[key]) == 0 {
		return true
	}
	for v := range f[key] {
		if match(v) {
			return true
		}
	}
	return false
}

// Exact reports whether value is among a key's values.
func Exact(f Filters, key, value string) bool { return len(f[key]) == 0 || f[key][value] }

// Prefixed reports whether one of the names begins with one of a key's values.
func Prefixed(f Filters, key string, names ...string) bool {
	return Any(f, key, func(v string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, v) })
	})
}

// Labels reports whether labels have what each of a key's values wants.
func Labels(f Filters, key string, labels map[string]string) bool { return HasLabels(labels, f[key]) }

// HasLabels reports whether labels have everything wanted, LABEL or LABEL=VALUE.
func HasLabels(labels map[string]string, wanted map[string]bool) bool {
	for want := range wanted {
		k, v, valued := strings.Cut(want, "=")
		if got, there := labels[k]; !there || valued && got != v {
			return false
		}
	}
	return true
}

// Pruned reports whether a prune with the filters label and label! is for an
// object with these labels: it has all of label, and not all of label!.
func Pruned(f Filters, labels map[string]string) bool {
	return Labels(f, "label", labels) && (len(f["label!"]) == 0 || !Labels(f, "label!", labels))
}

// Moment reads a time as filters and queries write it: seconds since 1970 with an
// optional fraction, RFC 3339 or its beginning, or how long before now.
func Moment(raw string, now time.Time) (t time.Time, ok bool) {
	whole, frac, _ := strings.Cut(raw, ".")
	secs, err := strconv.ParseInt(whole, 10, 64)
	ns, fracErr := strconv.ParseUint((frac + "000000000")[:9], 10, 64)
	if err == nil && fracErr == nil {
		return time.Unix(secs, int64(ns)), true
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, raw); err == nil {
			return t, true
		}
	}
	d, err := time.ParseDuration(raw)
	return now.Add(-d), err == nil
}
