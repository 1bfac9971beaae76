// Package stdio is how a container's output gets from the shim to its log and to
// whoever is attached: the log's file format with its rotation, its reader, and
// the small protocol on the attach socket. The writing half runs in the shim, so
// that output flows, and is stamped and rotated, while no daemon is there.
package stdio

import (
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Scheme marks a task's stdout as one the shim itself serves.
const Scheme = "skep"

// Spec tells the shim what to do with a container's output. It travels as the
// stdout of the task's creation, as a URI.
type Spec struct {
	Log      string // the log's file; "" keeps none
	MaxSize  int64  // bytes after which a file is rotated; 0: never
	MaxFiles int    // how many files are kept, the current one included; at least 1
	Attrs    string // what is written beside each line: a JSON object, or ""
	Socket   string // where attaching clients connect
	Exit     string // file that receives how the first process ended
}

// URI returns s as a task's stdout.
func (s Spec) URI() string {
	q := url.Values{}
	q.Set("log", s.Log)
	q.Set("max-size", strconv.FormatInt(s.MaxSize, 10))
	q.Set("max-file", strconv.Itoa(s.MaxFiles))
	if s.Attrs != "" {
		q.Set("attrs", s.Attrs)
	}
	q.Set("socket", s.Socket)
	q.Set("exit", s.Exit)
	return Scheme + ":?" + q.Encode()
}

// ParseURI reads what URI wrote. ok is false for a URI of another scheme.
func ParseURI(uri string) (s Spec, ok bool, err error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != Scheme {
		return Spec{}, false, nil
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Spec{}, true, fmt.Errorf("stdio %q: %w", uri, err)
	}
	s = Spec{Log: q.Get("log"), Attrs: q.Get("attrs"), Socket: q.Get("socket"), Exit: q.Get("exit")}
	if s.MaxSize, err = strconv.ParseInt(q.Get("max-size"), 10, 64); err != nil {
		return Spec{}, true, fmt.Errorf("stdio max-size: %w", err)
	}
	if s.MaxFiles, err = strconv.Atoi(q.Get("max-file")); err != nil {
		return Spec{}, true, fmt.Errorf("stdio max-file: %w", err)
	}
	return s, true, nil
}

// Stream is which of a container's outputs something was written to.
type Stream byte

// The streams. A container with a terminal has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// Exit is how a container's first process ended, as the shim leaves it in the
// file Spec.Exit.
type Exit struct {
	Code int       `json:"code"`
	At   time.Time `json:"at"`
}
