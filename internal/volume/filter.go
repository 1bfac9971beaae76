package volume

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
)

// filter turns the API's filters into a test. Values of one key are
// alternatives, except labels, which must all match.
func (s *Store) filter(filters map[string]map[string]bool, known ...string) (func(record) bool, error) {
	var tests []func(record) bool
	for key, values := range filters {
		if !slices.Contains(known, key) {
			return nil, cluster.Invalidf("invalid filter '%s'", key)
		}
		var any []func(record) bool
		for v := range values {
			t, err := s.test(key, v)
			if err != nil {
				return nil, err
			}
			if key == "label" || key == "label!" {
				tests = append(tests, t)
			} else {
				any = append(any, t)
			}
		}
		if len(any) > 0 {
			tests = append(tests, func(r record) bool {
				return slices.ContainsFunc(any, func(t func(record) bool) bool { return t(r) })
			})
		}
	}
	return func(r record) bool {
		return !slices.ContainsFunc(tests, func(t func(record) bool) bool { return !t(r) })
	}, nil
}

func (s *Store) test(key, v string) (func(record) bool, error) {
	switch key {
	case "dangling", "all":
		want, err := strconv.ParseBool(v)
		if err != nil {
			return nil, cluster.Invalidf("invalid filter '%s=[%s]'", key, v)
		}
		if key == "all" {
			return func(record) bool { return true }, nil
		}
		return func(r record) bool { return (len(s.users(r.Name)) == 0) == want }, nil
	case "driver":
		return func(record) bool { return v == "local" }, nil
	case "label":
		return func(r record) bool { return hasLabel(r.Labels, v) }, nil
	case "label!":
		return func(r record) bool { return !hasLabel(r.Labels, v) }, nil
	}
	re, err := regexp.Compile(v)
	if err != nil {
		return func(r record) bool { return strings.Contains(r.Name, v) }, nil
	}
	return func(r record) bool { return re.MatchString(r.Name) }, nil
}

func hasLabel(labels map[string]string, want string) bool {
	k, v, withValue := strings.Cut(want, "=")
	got, ok := labels[k]
	return ok && (!withValue || got == v)
}
