package httpapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) secretList(w http.ResponseWriter, r *http.Request) error {
	filters, err := filterParam(r.URL.Query())
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "id", "label", "name", "names"); err != nil {
		return err
	}
	list, err := s.control().Secrets(r.Context(), filters)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(list))
}

func (s *Server) secretInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.control().Secret(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (s *Server) secretCreate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.SecretSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	id, err := s.control().CreateSecret(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, map[string]string{"ID": id})
}

func (s *Server) secretUpdate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.SecretSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "secret")
	if err != nil {
		return err
	}
	return s.control().UpdateSecret(r.Context(), r.PathValue("id"), version, spec)
}

func (s *Server) secretRemove(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.control().RemoveSecret(r.Context(), r.PathValue("id")))
}
