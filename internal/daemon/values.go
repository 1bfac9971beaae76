package daemon

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// textValue is a flag of one value that parse reads.
type textValue[T any] struct {
	to    *T
	raw   string
	parse func(string) (T, error)
}

func textOf[T any](to *T, parse func(string) (T, error)) pflag.Value {
	return &textValue[T]{to: to, parse: parse}
}

func (v *textValue[T]) Set(raw string) (err error) {
	v.raw = raw
	*v.to, err = v.parse(raw)
	return err
}
func (v *textValue[T]) String() string { return v.raw }
func (v *textValue[T]) Type() string   { return "string" }

// listValue is a flag that may be repeated, each value read by parse.
type listValue[T any] struct {
	to    *[]T
	raw   []string
	parse func(string) (T, error)
}

func listOf[T any](to *[]T, parse func(string) (T, error)) pflag.Value {
	return &listValue[T]{to: to, parse: parse}
}

func (v *listValue[T]) Set(raw string) error {
	one, err := v.parse(raw)
	if err != nil {
		return err
	}
	*v.to, v.raw = append(*v.to, one), append(v.raw, raw)
	return nil
}
func (v *listValue[T]) String() string { return strings.Join(v.raw, ",") }
func (v *listValue[T]) Type() string   { return "list" }

// ulimitValue is a flag of NAME=SOFT[:HARD], repeated.
type ulimitValue struct{ to *map[string]*units.Ulimit }

func (v *ulimitValue) Set(raw string) error {
	l, err := units.ParseUlimit(raw)
	if err != nil {
		return err
	}
	if *v.to == nil {
		*v.to = map[string]*units.Ulimit{}
	}
	(*v.to)[l.Name] = l
	return nil
}

func (v *ulimitValue) String() string {
	if v.to == nil || len(*v.to) == 0 {
		return ""
	}
	return fmt.Sprint(*v.to)
}
func (v *ulimitValue) Type() string { return "ulimit" }

// ignoredValue takes whatever is typed.
type ignoredValue struct{}

func (*ignoredValue) Set(string) error { return nil }
func (*ignoredValue) String() string   { return "" }
func (*ignoredValue) Type() string     { return "string" }
