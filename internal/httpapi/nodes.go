package httpapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) nodeList(w http.ResponseWriter, r *http.Request) error {
	filters, err := filterParam(r.URL.Query())
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "id", "label", "membership", "name", "node.label", "role"); err != nil {
		return err
	}
	list, err := s.control().Nodes(r.Context(), filters)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(list))
}

func (s *Server) nodeInspect(w http.ResponseWriter, r *http.Request) error {
	n, err := s.control().Node(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, n)
}

func (s *Server) nodeUpdate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.NodeSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "node")
	if err != nil {
		return err
	}
	return s.control().UpdateNode(r.Context(), r.PathValue("id"), version, spec)
}

func (s *Server) nodeRemove(w http.ResponseWriter, r *http.Request) error {
	return s.control().RemoveNode(r.Context(), r.PathValue("id"), boolParam(r.URL.Query(), "force"))
}
