package stdio

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
)

// Entry is one line of a log.
type Entry struct {
	Time   time.Time
	Stream string
	Text   string
	Attrs  map[string]string // nil if it has none
}

// Reader reads a log from the oldest of its files to the newest and goes on, at
// the end, when more was written: Next then returns io.EOF until there is more.
type Reader struct {
	path string
	f    *os.File
	r    *bufio.Reader
	part []byte // a line whose end is not written yet
	next []*os.File
}

// OpenReader opens a log at its last tail lines; at its beginning if tail < 0. A
// log that was never written to is empty.
func OpenReader(path string, tail int) (*Reader, error) {
	files, err := openAll(path)
	if err != nil {
		return nil, err
	}
	l := &Reader{path: path, next: files}
	if tail >= 0 {
		err = l.seekTail(tail)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// openAll opens the files of a log, the oldest first.
func openAll(path string) ([]*os.File, error) {
	var files []*os.File // the newest first
	for i := 0; ; i++ {
		f, err := os.Open(rotated(path, i))
		if errors.Is(err, os.ErrNotExist) {
			if i == 0 {
				continue // rotated just now, or not there yet
			}
			break
		}
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		if len(files) > 0 && same(files[len(files)-1], f) {
			_ = f.Close() // rotated while we looked
			continue
		}
		files = append(files, f)
	}
	for i, j := 0, len(files)-1; i < j; i, j = i+1, j-1 {
		files[i], files[j] = files[j], files[i]
	}
	return files, nil
}

func same(a, b *os.File) bool {
	sa, erra := a.Stat()
	sb, errb := b.Stat()
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// seekTail drops all but the last n lines.
func (l *Reader) seekTail(n int) error {
	for i := len(l.next) - 1; i >= 0; i-- {
		found, err := seekLines(l.next[i], n)
		if err != nil {
			return err
		}
		if n -= found; n <= 0 {
			closeFiles(l.next[:i])
			l.next = l.next[i:]
			return nil
		}
	}
	return nil
}

// seekLines positions f before its last n lines and returns how many it found.
func seekLines(f *os.File, n int) (int, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	pos, found := st.Size(), 0
	if n == 0 {
		_, err = f.Seek(pos, io.SeekStart)
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for pos > 0 {
		size := min(int64(len(buf)), pos)
		if _, err := f.ReadAt(buf[:size], pos-size); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			at := pos - size + i
			if buf[i] != '\n' || at == st.Size()-1 {
				continue
			}
			if found++; found == n {
				_, err = f.Seek(at+1, io.SeekStart)
				return n, err
			}
		}
		pos -= size
	}
	if st.Size() > 0 {
		found++ // the first line has no newline before it
	}
	_, err = f.Seek(0, io.SeekStart)
	return found, err
}

// Next returns the next line. io.EOF says that there is none yet.
func (l *Reader) Next() (Entry, error) {
	for {
		if l.f == nil && !l.advance() {
			return Entry{}, io.EOF
		}
		line, err := l.r.ReadSlice('\n')
		l.part = append(l.part, line...)
		switch {
		case err == nil:
			e, ok := decode(l.part)
			l.part = l.part[:0]
			if ok {
				return e, nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			if !l.advance() {
				return Entry{}, io.EOF
			}
		default:
			return Entry{}, err
		}
	}
}

// advance goes to the next file if the current one is finished: it was rotated,
// and another followed it.
func (l *Reader) advance() bool {
	if len(l.next) == 0 {
		l.next = l.followers()
	}
	if len(l.next) == 0 {
		return false
	}
	if l.f != nil {
		if l.r.Buffered() == 0 && l.more() {
			return true // written to between our last read and its rotation
		}
		_ = l.f.Close()
	}
	l.f, l.next = l.next[0], l.next[1:]
	l.r = bufio.NewReader(l.f)
	l.part = l.part[:0]
	return true
}

// more reports whether the current file has grown past what was read of it.
func (l *Reader) more() bool {
	pos, err := l.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false
	}
	st, err := l.f.Stat()
	return err == nil && st.Size() > pos
}

// followers returns the files that are newer than the current one.
func (l *Reader) followers() []*os.File {
	if l.f != nil {
		if f, err := os.Open(l.path); err == nil {
			current := same(l.f, f)
			_ = f.Close()
			if current {
				return nil
			}
		}
	}
	files, err := openAll(l.path)
	if err != nil {
		return nil
	}
	if l.f == nil {
		return files
	}
	for i, f := range files {
		if same(l.f, f) {
			closeFiles(files[:i+1])
			return files[i+1:]
		}
	}
	return files // ours was removed already: all of these are newer
}

// Close closes the files.
func (l *Reader) Close() error {
	closeFiles(l.next)
	if l.f != nil {
		return l.f.Close()
	}
	return nil
}

// decode reads one line of the file; a damaged one is skipped.
func decode(line []byte) (Entry, bool) {
	if len(bytes.TrimSpace(line)) == 0 {
		return Entry{}, false
	}
	var raw struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if json.Unmarshal(line, &raw) != nil {
		return Entry{}, false
	}
	return Entry{Time: raw.Time, Stream: raw.Stream, Text: raw.Log, Attrs: raw.Attrs}, true
}
