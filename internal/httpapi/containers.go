package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
)

func (s *Server) containerRoutes() []route {
	return []route{
		{"GET /containers/json", s.containerList},
		{"POST /containers/create", s.containerCreate},
		{"POST /containers/prune", s.containerPrune},
		{"GET /containers/{id}/json", s.containerInspect},
		{"GET /containers/{id}/top", s.containerTop},
		{"GET /containers/{id}/logs", s.containerLogs},
		{"GET /containers/{id}/stats", s.containerStats},
		{"GET /containers/{id}/changes", absent("listing a container's changed files (docker diff)")},
		{"GET /containers/{id}/export", absent("exporting a container (docker export)")},
		{"GET /containers/{id}/attach/ws", absent("attaching over a websocket")},
		{"GET /containers/{id}/archive", absent("copying files out of a container (docker cp)")},
		{"PUT /containers/{id}/archive", absent("copying files into a container (docker cp)")},
		{"GET /containers/{id}/checkpoints", absent("checkpointing a container (docker checkpoint)")},
		{"POST /containers/{id}/checkpoints", absent("checkpointing a container (docker checkpoint)")},
		{"DELETE /containers/{id}/checkpoints/{checkpoint}", absent("checkpointing a container (docker checkpoint)")},
		{"POST /containers/{id}/start", s.containerStart},
		{"POST /containers/{id}/stop", s.containerStop},
		{"POST /containers/{id}/restart", s.containerRestart},
		{"POST /containers/{id}/kill", s.containerKill},
		{"POST /containers/{id}/pause", s.containerPause},
		{"POST /containers/{id}/unpause", s.containerUnpause},
		{"POST /containers/{id}/rename", s.containerRename},
		{"POST /containers/{id}/update", absent("changing a container's resources or restart policy (docker update)")},
		{"POST /containers/{id}/resize", s.containerResize},
		{"POST /containers/{id}/wait", s.containerWait},
		{"POST /containers/{id}/attach", s.containerAttach},
		{"DELETE /containers/{id}", s.containerRemove},
	}
}

func (s *Server) containerList(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	filters, err := filterParam(q)
	if err != nil {
		return err
	}
	opts := engine.ListOptions{All: boolParam(q, "all"), Size: boolParam(q, "size"), Filters: filters}
	if limit, err := intParam(q, "limit"); err != nil {
		return err
	} else if limit != nil {
		opts.Limit = *limit
	}
	for _, key := range []string{"since", "before"} { // the form before 1.24
		if v := q.Get(key); v != "" {
			if opts.Filters == nil {
				opts.Filters = map[string]map[string]bool{}
			}
			opts.Filters[key] = map[string]bool{v: true}
		}
	}
	list, err := s.Containers.List(r.Context(), opts)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(list))
}

func (s *Server) containerCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Config == nil {
		return cluster.Invalidf("config cannot be empty in order to create a container")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	platform, err := platformParam(r.URL.Query())
	if err != nil {
		return err
	}
	if req.HostConfig.NetworkMode == "" {
		req.HostConfig.NetworkMode = "default"
	}
	resp, err := s.Containers.Create(r.Context(), engine.CreateRequest{
		Name:     r.URL.Query().Get("name"),
		Request:  req,
		Platform: platform,
	})
	if err != nil {
		return err
	}
	resp.Warnings = orEmpty(resp.Warnings)
	return writeJSON(w, http.StatusCreated, resp)
}

func (s *Server) containerInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.Containers.Inspect(r.Context(), r.PathValue("id"), boolParam(r.URL.Query(), "size"))
	if err != nil {
		return err
	}
	if before(r, "1.52") {
		old, err := legacyContainer(c)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, old)
	}
	return writeJSON(w, http.StatusOK, c)
}

// legacyContainer adds what clients older than 1.52 read from an inspection: the
// address of the default bridge outside the list of networks.
func legacyContainer(c container.InspectResponse) (any, error) {
	if c.NetworkSettings == nil {
		return c, nil
	}
	fields := map[string]any{
		"Bridge": "", "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
		"EndpointID": "", "Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
		"IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "", "MacAddress": "",
	}
	if ep := c.NetworkSettings.Networks["bridge"]; ep != nil {
		fields["EndpointID"] = ep.EndpointID
		fields["MacAddress"] = ep.MacAddress.String()
		fields["IPPrefixLen"] = ep.IPPrefixLen
		if ep.IPAddress.IsValid() {
			fields["IPAddress"] = ep.IPAddress.String()
		}
		if ep.Gateway.IsValid() {
			fields["Gateway"] = ep.Gateway.String()
		}
	}
	settings, err := patchJSON(c.NetworkSettings, fields)
	if err != nil {
		return nil, err
	}
	return patchJSON(c, map[string]any{"NetworkSettings": settings})
}

// containerStart answers 304 for a container that runs already.
func (s *Server) containerStart(w http.ResponseWriter, r *http.Request) error {
	running, err := s.running(r)
	if err != nil {
		return err
	}
	if running {
		return errdefs.ErrNotModified
	}
	return noContent(w, s.Containers.Start(r.Context(), r.PathValue("id")))
}

// containerStop answers 304 for a container that does not run.
func (s *Server) containerStop(w http.ResponseWriter, r *http.Request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	running, err := s.running(r)
	if err != nil {
		return err
	}
	if !running {
		return errdefs.ErrNotModified
	}
	return noContent(w, s.Containers.Stop(r.Context(), r.PathValue("id"), opts))
}

// running reports whether the request's container runs, is about to be started
// again, or is paused: whatever stop would end and start would not change.
func (s *Server) running(r *http.Request) (bool, error) {
	c, err := s.Containers.Inspect(r.Context(), r.PathValue("id"), false)
	if err != nil {
		return false, err
	}
	if c.State == nil || c.State.Paused && r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/start") {
		// Starting a paused container is an error of its own: the engine's to tell.
		return false, nil
	}
	return c.State.Running || c.State.Paused || c.State.Restarting, nil
}

func (s *Server) containerRestart(w http.ResponseWriter, r *http.Request) error {
	opts, err := stopOptions(r)
	if err != nil {
		return err
	}
	return noContent(w, s.Containers.Restart(r.Context(), r.PathValue("id"), opts))
}

func stopOptions(r *http.Request) (engine.StopOptions, error) {
	t, err := intParam(r.URL.Query(), "t")
	return engine.StopOptions{Signal: r.URL.Query().Get("signal"), Timeout: t}, err
}

func (s *Server) containerKill(w http.ResponseWriter, r *http.Request) error {
	err := s.Containers.Kill(r.Context(), r.PathValue("id"), r.URL.Query().Get("signal"))
	return noContent(w, err)
}

func (s *Server) containerPause(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.Containers.Pause(r.Context(), r.PathValue("id")))
}

func (s *Server) containerUnpause(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.Containers.Unpause(r.Context(), r.PathValue("id")))
}

func (s *Server) containerRename(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.Containers.Rename(r.Context(), r.PathValue("id"), r.URL.Query().Get("name")))
}

func (s *Server) containerResize(w http.ResponseWriter, r *http.Request) error {
	h, wd, err := terminalSize(r)
	if err != nil {
		return err
	}
	return s.Containers.Resize(r.Context(), r.PathValue("id"), h, wd)
}

func terminalSize(r *http.Request) (height, width uint32, err error) {
	h, err := strconv.ParseUint(r.URL.Query().Get("h"), 10, 32)
	if err != nil {
		return 0, 0, cluster.Invalidf("invalid resize height %q", r.URL.Query().Get("h"))
	}
	w, err := strconv.ParseUint(r.URL.Query().Get("w"), 10, 32)
	if err != nil {
		return 0, 0, cluster.Invalidf("invalid resize width %q", r.URL.Query().Get("w"))
	}
	return uint32(h), uint32(w), nil
}

func (s *Server) containerTop(w http.ResponseWriter, r *http.Request) error {
	top, err := s.Containers.Top(r.Context(), r.PathValue("id"), r.URL.Query().Get("ps_args"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, top)
}

func (s *Server) containerRemove(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	return noContent(w, s.Containers.Remove(r.Context(), r.PathValue("id"), engine.RemoveOptions{
		Force: boolParam(q, "force"), Volumes: boolParam(q, "v"), Link: boolParam(q, "link"),
	}))
}

func (s *Server) containerPrune(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	report, err := s.Containers.Prune(r.Context(), filters)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

// containerWait answers 200 at once and the result when there is one, so that a
// client can wait first and start then.
func (s *Server) containerWait(w http.ResponseWriter, r *http.Request) error {
	cond := container.WaitCondition(r.URL.Query().Get("condition"))
	switch cond {
	case "":
		cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return cluster.Invalidf("invalid condition: %q", cond)
	}
	if before(r, "1.30") {
		cond = container.WaitConditionNotRunning
	}
	result, err := s.Containers.Wait(r.Context(), r.PathValue("id"), cond)
	if err != nil {
		return err
	}
	var out flushed
	if !before(r, "1.30") {
		out = begin(w, "application/json")
	}
	var res engine.WaitResult
	select {
	case res = <-result:
	case <-r.Context().Done():
		return r.Context().Err()
	}
	answer := container.WaitResponse{StatusCode: int64(res.ExitCode)}
	if res.Err != "" {
		answer.Error = &container.WaitExitError{Message: res.Err}
	}
	if out.w == nil {
		return writeJSON(w, http.StatusOK, answer)
	}
	return out.line(answer)
}

// containerStats streams one sample a second, or answers with one.
func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	follow := q.Get("stream") == "" || boolParam(q, "stream")
	id := r.PathValue("id")
	first, err := s.Containers.Stats(r.Context(), id)
	if err != nil {
		return err
	}
	if !follow {
		if boolParam(q, "one-shot") {
			return writeJSON(w, http.StatusOK, first)
		}
		second, err := s.nextSample(r, id, first)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, second)
	}
	out := begin(w, "application/json")
	for sample := first; ; {
		if err := out.line(sample); err != nil {
			return err
		}
		next, err := s.nextSample(r, id, sample)
		if err != nil {
			if errors.Is(err, r.Context().Err()) || errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
		sample = next
	}
}
