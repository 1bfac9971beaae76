package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestURI(t *testing.T) {
	want := Spec{Log: "/a b/c?d&e.log", MaxSize: 123, MaxFiles: 4, Attrs: `{"a":"b&c #\n"}`, Socket: "/s#x", Exit: "/e"}
	got, ok, err := ParseURI(want.URI())
	if err != nil || !ok || got != want {
		t.Errorf("%+v %v %v", got, ok, err)
	}
	for _, other := range []string{"", "/run/fifo", "file:///x"} {
		if _, ok, err := ParseURI(other); ok || err != nil {
			t.Errorf("%q is taken for ours: %v", other, err)
		}
	}
	if _, _, err := ParseURI("skep:?max-size=x"); err == nil {
		t.Error("nonsense is no error")
	}
}

// TestReadWhileWritten reads a log that is written and rotated at the same time,
// in every order of the two: nothing that is still on disk is missed or doubled.
func TestReadWhileWritten(t *testing.T) {
	for step := 1; step < 40; step++ {
		path := filepath.Join(t.TempDir(), "log")
		l, err := OpenLog(Spec{Log: path, MaxSize: 1000, MaxFiles: 50})
		if err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(path, -1)
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		drain := func() {
			for {
				e, err := r.Next()
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("line %d\n", read); e.Text != want {
					t.Fatalf("step %d: got %q, want %q", step, e.Text, want)
				}
				read++
			}
		}
		for i := range 200 {
			if err := l.Append(time.Now(), Stdout, fmt.Appendf(nil, "line %d\n", i)); err != nil {
				t.Fatal(err)
			}
			if i%step == 0 {
				if err := l.Flush(); err != nil {
					t.Fatal(err)
				}
				drain()
			}
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		drain()
		if read != 200 {
			t.Errorf("step %d: %d lines", step, read)
		}
		if err := errors.Join(r.Close(), l.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(Spec{Log: path})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	if err := errors.Join(l.Append(at, Stderr, []byte("a \"q\" \x00\xff<\n")), l.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	want := `{"log":"a \"q\" \u0000` + "\ufffd" + `\u003c\n","stream":"stderr","time":"2026-01-02T03:04:05.0000006Z"}` + "\n"
	want = strings.ReplaceAll(want, "\ufffd", `\ufffd`)
	if err != nil || string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestAttrs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(Spec{Log: path, Attrs: `{"tier":"front"}`})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := errors.Join(l.Append(at, Stdout, []byte("x\n")), l.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if want := `{"log":"x\n","stream":"stdout","attrs":{"tier":"front"},"time":"2026-01-02T03:04:05Z"}` + "\n"; err != nil || string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
	r, err := OpenReader(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := r.Next()
	if diff := cmp.Diff(Entry{Time: at, Stream: "stdout", Text: "x\n", Attrs: map[string]string{"tier": "front"}}, e); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// TestOutput leads two streams to the log and a client.
func TestOutput(t *testing.T) {
	dir, err := os.MkdirTemp("", "stdio")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	spec := Spec{Log: filepath.Join(dir, "log"), MaxFiles: 1, Socket: filepath.Join(dir, "o")}
	o, err := OpenOutput(spec)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Attach(t.Context(), spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	wakes, err := Watch(t.Context(), spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 3*maxLine+5) + "\n"
	o.Run(io.NopCloser(strings.NewReader("one\n"+long+"unfinished")), io.NopCloser(strings.NewReader("err\n")))
	var out, errs bytes.Buffer
	if err := conn.Copy(&out, &errs); err != nil {
		t.Fatal(err)
	}
	if out.String() != "one\n"+long+"unfinished" || errs.String() != "err\n" {
		t.Errorf("client: %d bytes, %q", out.Len(), errs.String())
	}
	for wakes.Wake() == nil { // until the output ends
	}
	o.Wait(10 * time.Second)
	r, err := OpenReader(spec.Log, -1)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for {
		e, err := r.Next()
		if err != nil {
			break
		}
		if e.Stream == "stdout" {
			texts = append(texts, e.Text)
		}
	}
	x := strings.Repeat("x", maxLine)
	if d := cmp.Diff([]string{"one\n", x, x, x, "xxxxx\n", "unfinished"}, texts); d != "" {
		t.Error(d)
	}
	if _, err := os.Stat(spec.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket left: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, line []byte) { decode(line) })
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), 2)
	f.Add([]byte("a"), 1)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		if n < 0 || n > 100 {
			return
		}
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		found, err := seekLines(file, n)
		if err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Count(rest, []byte("\n"))
		if len(rest) > 0 && rest[len(rest)-1] != '\n' {
			lines++
		}
		if lines != found || found > n || !bytes.HasSuffix(data, rest) {
			t.Errorf("%q tail %d: %q, found %d", data, n, rest, found)
		}
	})
}
