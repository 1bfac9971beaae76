package stdio

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// Log appends lines to a file in Docker's json-file format: one object a line,
// {"log":"text\n","stream":"stdout","time":"RFC 3339"}. Text without its newline
// is part of a longer line, or the unfinished last one. It is not safe for
// concurrent use.
type Log struct {
	path     string
	maxSize  int64
	maxFiles int

	f    *os.File
	size int64
	buf  []byte
}

// OpenLog opens the log at path for appending.
func OpenLog(path string, maxSize int64, maxFiles int) (*Log, error) {
	l := &Log{path: path, maxSize: maxSize, maxFiles: max(maxFiles, 1)}
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

// Append writes one line, or a part of one.
func (l *Log) Append(t time.Time, s Stream, line []byte) error {
	text, err := json.Marshal(string(line))
	if err != nil {
		return err
	}
	l.buf = append(l.buf[:0], `{"log":`...)
	l.buf = append(l.buf, text...)
	l.buf = append(l.buf, `,"stream":"`...)
	l.buf = append(l.buf, s.String()...)
	l.buf = append(l.buf, `","time":"`...)
	l.buf = t.UTC().AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(l.buf, "\"}\n"...)
	if l.maxSize > 0 && l.size > 0 && l.size+int64(len(l.buf)) > l.maxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
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

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// rotated names the i-th file of a log, 0 being the current one.
func rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}

// RemoveLog removes a log and its rotated files.
func RemoveLog(path string) error {
	for i := 0; ; i++ {
		err := os.Remove(rotated(path, i))
		if errors.Is(err, os.ErrNotExist) && i > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
}
