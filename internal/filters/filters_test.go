package filters

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// of makes filters of key, value pairs.
func of(pairs ...string) Filters {
	f := Filters{}
	for i := 0; i < len(pairs); i += 2 {
		if f[pairs[i]] == nil {
			f[pairs[i]] = map[string]bool{}
		}
		f[pairs[i]][pairs[i+1]] = true
	}
	return f
}

func TestCheck(t *testing.T) {
	if err := Check(of("name", "x", "id", "y"), "id", "name", "label"); err != nil {
		t.Error(err)
	}
	err := Check(of("name", "x", "b", "y", "a", "z"), "name")
	if !errdefs.IsInvalidArgument(err) || err.Error() != "Invalid filter 'a'" {
		t.Errorf("two unknown keys: %v", err)
	}
}

func TestPasses(t *testing.T) {
	labels := map[string]string{"zone": "a", "ssd": ""}
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"exact, not asked for", Exact(nil, "mode", "global"), true},
		{"exact, one of two", Exact(of("mode", "global", "mode", "replicated"), "mode", "global"), true},
		{"exact, another", Exact(of("mode", "replicated"), "mode", "global"), false},
		{"prefix, not asked for", Prefixed(nil, "name"), true},
		{"prefix of the second name", Prefixed(of("name", "we"), "name", "api", "web"), true},
		{"prefix of none", Prefixed(of("name", "web.1"), "name", "web"), false},
		{"any", Any(of("x", "1", "x", "2"), "x", func(v string) bool { return v == "2" }), true},
		{"none", Any(of("x", "1"), "x", func(v string) bool { return v == "2" }), false},
		{"labels, not asked for", Labels(nil, "label", nil), true},
		{"every label", Labels(of("label", "zone=a", "label", "ssd"), "label", labels), true},
		{"one label of two", Labels(of("label", "zone=b", "label", "ssd"), "label", labels), false},
		{"a label's empty value", Labels(of("label", "ssd="), "label", labels), true},
		{"a label that is not there", Labels(of("label", "gpu"), "label", labels), false},
		{"pruned, not asked for", Pruned(nil, labels), true},
		{"pruned but with", Pruned(of("label!", "ssd"), labels), false},
		{"pruned but with both", Pruned(of("label!", "ssd", "label!", "gpu"), labels), true},
		{"pruned with and without", Pruned(of("label", "zone", "label!", "gpu"), labels), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", c.what, c.got)
		}
	}
}

func TestMoments(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for raw, want := range map[string]time.Time{
		"1000":                      time.Unix(1000, 0),
		"-1":                        time.Unix(-1, 0),
		"1000.25":                   time.Unix(1000, 250_000_000),
		"1000.0000000019":           time.Unix(1000, 1),
		"2026-01-02T03:04:05.5Z":    now.Add(500 * time.Millisecond),
		"2026-01-02T04:04:05+01:00": now,
		"2026-01-02T03:04:05":       now,
		"2026-01-02":                now.Truncate(24 * time.Hour),
		"10m":                       now.Add(-10 * time.Minute),
		"1.5h":                      now.Add(-90 * time.Minute),
	} {
		if got, ok := Moment(raw, now); !ok || !got.Equal(want) {
			t.Errorf("%s: %v %v, want %v", raw, got, ok, want)
		}
	}
	for _, raw := range []string{"", "never", "1.x", "1e9", "NaN", "99999999999999999999"} {
		if got, ok := Moment(raw, now); ok {
			t.Errorf("%q: %v", raw, got)
		}
	}
}
