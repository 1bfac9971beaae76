package stdio

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Log appends lines to a file in Docker's json-file format: one object a line,
// {"log":"text\n","stream":"stdout","attrs":{},"time":"RFC 3339"}, without attrs
// if the container has none. Text without its newline is part of a longer line, or
// the unfinished last one. It is not safe for concurrent use.
type Log struct {
	path     string
	maxSize  int64
	maxFiles int
	attrs    string

	f    *os.File
	size int64
	buf  []byte
}

// OpenLog opens the log that s describes for appending.
func OpenLog(s Spec) (*Log, error) {
	l := &Log{path: s.Log, maxSize: s.MaxSize, maxFiles: max(s.MaxFiles, 1), attrs: s.Attrs}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Append adds one line, or a part of one. It may stay in memory until Flush.
func (l *Log) Append(t time.Time, s Stream, line []byte) error {
	text, err := json.Marshal(string(line))
	if err != nil {
		return err
	}
	from := len(l.buf)
	l.buf = append(l.buf, `{"log":`...)
	l.buf = append(l.buf, text...)
	l.buf = append(l.buf, `,"stream":"`...)
	l.buf = append(l.buf, s.String()...)
	if l.attrs != "" {
		l.buf = append(l.buf, `","attrs":`...)
		l.buf = append(l.buf, l.attrs...)
		l.buf = append(l.buf, `,"time":"`...)
	} else {
		l.buf = append(l.buf, `","time":"`...)
	}
	l.buf = t.UTC().AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(l.buf, "\"}\n"...)
	if l.maxSize > 0 && l.size+int64(from) > 0 && l.size+int64(len(l.buf)) > l.maxSize {
		return l.turn(from)
	}
	if len(l.buf) > flushAt {
		return l.Flush()
	}
	return nil
}

// flushAt is how much is gathered before it is written without being asked.
const flushAt = 32 << 10

// turn writes what was gathered up to from, rotates, and keeps the rest for the
// new file.
func (l *Log) turn(from int) error {
	rest := append([]byte(nil), l.buf[from:]...)
	l.buf = l.buf[:from]
	err := l.Flush()
	if err == nil {
		err = l.rotate()
	}
	l.buf = append(l.buf[:0], rest...)
	return err
}

// Flush writes what was appended. What cannot be written is dropped.
func (l *Log) Flush() error {
	if len(l.buf) == 0 {
		return nil
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
	if l.buf = l.buf[:0]; cap(l.buf) > flushAt {
		l.buf = nil
	}
	return err
}

// rotate moves the files up by one and starts a new one. Readers that hold the
// old one read it to its end.
func (l *Log) rotate() error {
	if err := l.f.Close(); err != nil {
		return err
	}
	for i := l.maxFiles - 1; i > 0; i-- {
		err := os.Rename(rotated(l.path, i-1), rotated(l.path, i))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if l.maxFiles == 1 {
		// A new inode, not a truncated one: a reader must not lose its place.
		if err := os.Remove(l.path); err != nil {
			return err
		}
	}
	return l.open()
}

// Close writes what is left and closes the file.
func (l *Log) Close() error { return errors.Join(l.Flush(), l.f.Close()) }

// rotated names the i-th file of a log, 0 being the current one.
func rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}
