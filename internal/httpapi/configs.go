package httpapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) configList(w http.ResponseWriter, r *http.Request) error {
	filters, err := filterParam(r.URL.Query())
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "id", "label", "name", "names"); err != nil {
		return err
	}
	list, err := s.control().Configs(r.Context(), filters)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(list))
}

func (s *Server) configInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.control().Config(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (s *Server) configCreate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ConfigSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	id, err := s.control().CreateConfig(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, map[string]string{"ID": id})
}

func (s *Server) configUpdate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ConfigSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "config")
	if err != nil {
		return err
	}
	return s.control().UpdateConfig(r.Context(), r.PathValue("id"), version, spec)
}

func (s *Server) configRemove(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.control().RemoveConfig(r.Context(), r.PathValue("id")))
}
