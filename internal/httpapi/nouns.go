package httpapi

import (
	"context"
	"net/http"
	"strconv"

	"github.com/skep-dev/skep/internal/cluster"
)

// What most nouns of the swarm are asked alike. A request is read first, whether
// or not this node can answer it.

func list[T any](s *Server, of func(Control, context.Context, Filters) ([]T, error), known ...string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		filters, err := knownFilters(r, known...)
		if err != nil {
			return err
		}
		c, err := s.control()
		if err != nil {
			return err
		}
		all, err := of(c, r.Context(), filters)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, orEmpty(all))
	}
}

func inspect[T any](s *Server, of func(Control, context.Context, string) (T, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c, err := s.control()
		if err != nil {
			return err
		}
		one, err := of(c, r.Context(), r.PathValue("id"))
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, one)
	}
}

func create[Spec any](s *Server, by func(Control, context.Context, Spec) (string, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		var spec Spec
		if err := readJSON(r, &spec); err != nil {
			return err
		}
		c, err := s.control()
		if err != nil {
			return err
		}
		id, err := by(c, r.Context(), spec)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusCreated, map[string]string{"ID": id})
	}
}

func update[Spec any](s *Server, noun string, by func(Control, context.Context, string, uint64, Spec) error) handler {
	return func(_ http.ResponseWriter, r *http.Request) error {
		var spec Spec
		if err := readJSON(r, &spec); err != nil {
			return err
		}
		version, err := versionParam(r, noun)
		if err != nil {
			return err
		}
		c, err := s.control()
		if err != nil {
			return err
		}
		return by(c, r.Context(), r.PathValue("id"), version, spec)
	}
}

func (s *Server) remove(by func(Control, context.Context, string) error, code int) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c, err := s.control()
		if err != nil {
			return err
		}
		if err := by(c, r.Context(), r.PathValue("id")); err != nil {
			return err
		}
		w.WriteHeader(code)
		return nil
	}
}

// versionParam reads the version of the object that an update was made from.
func versionParam(r *http.Request, noun string) (uint64, error) {
	raw := r.URL.Query().Get("version")
	v, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, cluster.Invalidf("invalid %s version '%s': %v", noun, raw, err)
	}
	return v, nil
}
