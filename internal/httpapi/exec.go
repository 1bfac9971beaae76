package httpapi

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

func (s *Server) execRoutes() []route {
	return []route{
		{"POST /containers/{id}/exec", s.execCreate},
		{"POST /exec/{id}/start", s.execStart},
		{"POST /exec/{id}/resize", s.execResize},
		{"GET /exec/{id}/json", s.execInspect},
	}
}

func (s *Server) execCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return cluster.Invalidf("No exec command specified")
	}
	id, err := s.Containers.ExecCreate(r.Context(), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *Server) execStart(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if err := readOptionalJSON(r, &req); err != nil {
		return err
	}
	if req.ConsoleSize != nil && !req.Tty {
		return cluster.Invalidf("console size is only supported when TTY is enabled")
	}
	id := r.PathValue("id")
	if req.Detach {
		if err := s.Containers.ExecStart(r.Context(), id, true, req.ConsoleSize, engine.Streams{}, nil); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	exec, err := s.Containers.ExecInspect(r.Context(), id)
	if err != nil {
		return err
	}
	conn := newLazyConn(w, r, streamType(r, req.Tty))
	streams := streamsOf(conn, req.Tty, exec.OpenStdin, exec.OpenStdout, exec.OpenStderr)
	err = s.Containers.ExecStart(r.Context(), id, false, req.ConsoleSize, streams, conn.open)
	if err != nil && conn.opened() && conn.err == nil && r.Context().Err() == nil {
		// Docker tells a failure after the upgrade on the stream itself.
		if req.Tty {
			conn.Write([]byte(err.Error() + "\r\n"))
		} else {
			frame(conn, frameStderr, []byte(err.Error()+"\r\n"))
		}
	}
	return conn.finish(err)
}

func (s *Server) execResize(w http.ResponseWriter, r *http.Request) error {
	h, wd, err := terminalSize(r)
	if err != nil {
		return err
	}
	return s.Containers.ExecResize(r.Context(), r.PathValue("id"), h, wd)
}

func (s *Server) execInspect(w http.ResponseWriter, r *http.Request) error {
	exec, err := s.Containers.ExecInspect(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, exec)
}
