package volume

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
)

// filter turns the API's filters into a test. Values of one key are
// alternatives, except those of label and label!, which count together.
func (s *Store) filter(f filters.Filters, known ...string) (func(record) bool, error) {
	tests := []func(record) bool{func(r record) bool { return filters.Pruned(f, r.Labels) }}
	for key, values := range f {
		if !slices.Contains(known, key) {
			return nil, cluster.Invalidf("invalid filter '%s'", key)
		}
		if key == "label" || key == "label!" {
			continue
		}
		var any []func(record) bool
		for v := range values {
			t, err := s.test(key, v)
			if err != nil {
				return nil, err
			}
			any = append(any, t)
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
	}
	re, err := regexp.Compile(v)
	if err != nil {
		return func(r record) bool { return strings.Contains(r.Name, v) }, nil
	}
	return func(r record) bool { return re.MatchString(r.Name) }, nil
}
