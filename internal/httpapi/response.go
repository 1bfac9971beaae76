package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
)

// writeJSON answers with v as JSON. HTML is not escaped, as with Docker, and a
// newline ends the value.
func writeJSON(w http.ResponseWriter, code int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, err := w.Write(buf.Bytes())
	return err
}

// patchJSON returns v's JSON object with fields added or (nil) taken away: how
// an answer gets the shape that an older client expects.
func patchJSON(v any, fields map[string]any) (any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var obj map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&obj); err != nil {
		return nil, err
	}
	for key, value := range fields {
		if value == nil {
			delete(obj, key)
		} else {
			obj[key] = value
		}
	}
	return obj, nil
}

// noContent answers 204.
func noContent(w http.ResponseWriter, err error) error {
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// flushed writes and flushes at once, for answers that are read as they grow.
type flushed struct{ w http.ResponseWriter }

// begin sends the header of a streamed answer, so that the client knows that
// its request was understood before there is anything to read.
func begin(w http.ResponseWriter, contentType string) flushed {
	if contentType != "" {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(http.StatusOK)
	f := flushed{w}
	f.flush()
	return f
}

func (f flushed) flush() { http.NewResponseController(f.w).Flush() }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.flush()
	return n, err
}

// line writes v as one line of JSON.
func (f flushed) line(v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := f.Write(buf.Bytes())
	return err
}
