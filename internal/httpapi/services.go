package httpapi

import (
	"fmt"
	"io"
	"maps"
	"net/http"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/servicelogs"
)

func (s *Server) serviceList(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	status := boolParam(r.URL.Query(), "status") && !before(r, "1.41")
	c, err := s.control()
	if err != nil {
		return err
	}
	list, err := c.Services(r.Context(), filters, status)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(list))
}

func (s *Server) serviceInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.control()
	if err != nil {
		return err
	}
	svc, err := c.Service(r.Context(), r.PathValue("id"), boolParam(r.URL.Query(), "insertDefaults"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, svc)
}

func (s *Server) serviceCreate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ServiceSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	c, err := s.control()
	if err != nil {
		return err
	}
	resp, err := c.CreateService(r.Context(), spec, ServiceOptions{RegistryAuth: r.Header.Get(registry.AuthHeader)})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, resp)
}

func (s *Server) serviceUpdate(w http.ResponseWriter, r *http.Request) error {
	var spec swarm.ServiceSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "service")
	if err != nil {
		return err
	}
	q := r.URL.Query()
	opts := ServiceOptions{
		RegistryAuth: r.Header.Get(registry.AuthHeader), AuthFrom: q.Get("registryAuthFrom"), Rollback: q.Get("rollback"),
	}
	switch opts.AuthFrom {
	case "", "spec", "previous-spec":
	default:
		return cluster.Invalidf("unsupported registryAuthFrom value: %q", opts.AuthFrom)
	}
	switch opts.Rollback {
	case "", "none", "previous":
	default:
		return cluster.Invalidf("unrecognized rollback option %s", opts.Rollback)
	}
	c, err := s.control()
	if err != nil {
		return err
	}
	resp, err := c.UpdateService(r.Context(), r.PathValue("id"), version, spec, opts)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, resp)
}

func (s *Server) serviceLogs(w http.ResponseWriter, r *http.Request) error {
	return s.swarmLogs(w, r, r.PathValue("id"), "")
}

func (s *Server) taskLogs(w http.ResponseWriter, r *http.Request) error {
	return s.swarmLogs(w, r, "", r.PathValue("id"))
}

// swarmLogs streams the logs of a service's tasks or of one task. With details,
// each line begins with whose it is, from which the command line makes its own
// prefix.
func (s *Server) swarmLogs(w http.ResponseWriter, r *http.Request, service, task string) error {
	q := r.URL.Query()
	opts, err := logsOptions(q)
	if err != nil {
		return err
	}
	stamps, details := boolParam(q, "timestamps"), boolParam(q, "details")
	var out flushed
	var tty bool
	head := func(hasTTY bool) {
		tty = hasTTY
		out = begin(w, streamType(r, tty))
	}
	err = s.Logs.Logs(r.Context(), service, task, opts, head, func(e servicelogs.Entry) error {
		whose := ""
		if details {
			// Last, so that no label or variable of the container passes for them.
			attrs := maps.Clone(e.Attrs)
			if attrs == nil {
				attrs = map[string]string{}
			}
			attrs[cluster.LabelNodeID], attrs[cluster.LabelServiceID], attrs[cluster.LabelTaskID] = e.NodeID, e.ServiceID, e.TaskID
			whose = attrsText(attrs) + " "
		}
		return writeLog(out, e.LogEntry, tty, stamps, whose)
	})
	return endLogs(r, out, tty, err)
}

// endLogs ends a stream of logs. Once the answer has begun, an error can only be
// told in it.
func endLogs(r *http.Request, out flushed, tty bool, err error) error {
	switch {
	case err == nil || out.w == nil:
		return err
	case r.Context().Err() != nil:
		return nil
	case tty:
		_, err = io.WriteString(out, lateLogError(err))
		return err
	}
	return frame(out, byte(stdcopy.Systemerr), []byte(lateLogError(err)))
}

func lateLogError(err error) string { return fmt.Sprintf("Error grabbing logs: %v\n", err) }
