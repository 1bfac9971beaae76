// Package httpapi serves the Docker Engine API, versions 1.24 to the newest. It
// is the only place that knows HTTP and API versions: it parses requests, calls
// the rooms that do the work, and shapes their answers for the client's version.
// It holds no state of its own. daemon makes it and gives it listeners.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client/pkg/versions"

	"github.com/skep-dev/skep/internal/cluster"
)

// The Engine API versions served.
const (
	MinAPIVersion = "1.24"
	MaxAPIVersion = "1.56"
)

// Server answers the Engine API with the help of the rooms in its fields, all of
// which must be set.
type Server struct {
	Host       Host
	Containers Containers
	Images     Images
	Volumes    Volumes
	Networks   Networks
	Member     Member
	// Control returns the swarm's state, or why this node cannot tell it.
	Control func() (Control, error)
	Logs    TaskLogs
	Log     *slog.Logger
}

// handler answers one request. An error that is returned before the first byte
// of the answer becomes the answer.
type handler func(w http.ResponseWriter, r *http.Request) error

// route is one line of the API: a ServeMux pattern without the version prefix.
type route struct {
	pattern string
	serve   handler
}

// routes is the whole API, a noun at a time.
func (s *Server) routes() []route {
	var all []route
	for _, noun := range [][]route{
		s.systemRoutes(), s.containerRoutes(), s.execRoutes(), s.imageRoutes(),
		s.volumeRoutes(), s.networkRoutes(), s.swarmRoutes(), s.absentRoutes(),
	} {
		all = append(all, noun...)
	}
	return all
}

// Handler returns the API as one HTTP handler.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range s.routes() {
		mux.Handle(rt.pattern, s.wrap(rt.serve))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.setHeaders(w.Header())
		r, err := withVersion(r)
		if err != nil {
			writeError(w, r, err)
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			writeError(w, r, cluster.NotFoundf("page not found"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// The times an orderly end takes: requests may finish, then those that follow
// something are told to end, then what is left is cut.
const (
	finishTime = 300 * time.Millisecond
	cutTime    = 2 * time.Second
)

// Serve answers on l until ctx ends, and returns nil when it then ended in order.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	srv := &http.Server{
		Handler:           s.Handler(),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	follow := time.AfterFunc(finishTime, endRequests)
	defer follow.Stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutTime)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		srv.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *Server) setHeaders(h http.Header) {
	h.Set("Server", fmt.Sprintf("skep/%s (%s)", s.Host.Version, runtime.GOOS))
	h.Set("Api-Version", MaxAPIVersion)
	h.Set("Docker-Experimental", fmt.Sprint(s.Host.Experimental))
	h.Set("Ostype", runtime.GOOS)
}

// wrap turns a handler into an http.Handler: panics and errors become answers,
// and failures of ours are logged.
func (s *Server) wrap(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tw := &trackingWriter{ResponseWriter: w}
		err := s.guarded(h, tw, r)
		if err == nil {
			return
		}
		if status(err) == http.StatusInternalServerError && r.Context().Err() == nil {
			s.Log.Error("request", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		if tw.wrote {
			return // too late for an error answer; streams carry their own
		}
		writeError(w, r, err)
	})
}

// guarded calls h. A panic ends that request alone, and its client is told.
func (s *Server) guarded(h handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s %s met a defect of the daemon, which its log tells of: %v", r.Method, clip(r.URL.Path), p)
		}
	}()
	return h(w, r)
}

// trackingWriter remembers whether the answer has begun.
type trackingWriter struct {
	http.ResponseWriter
	wrote bool
}

func (t *trackingWriter) WriteHeader(code int) {
	t.wrote = true
	t.ResponseWriter.WriteHeader(code)
}

func (t *trackingWriter) Write(p []byte) (int, error) {
	t.wrote = true
	return t.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush and hijack.
func (t *trackingWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

type versionKey struct{}

var versionPrefix = regexp.MustCompile(`^/v([0-9]+(?:\.[0-9]+)?)(/.*)$`)

// withVersion takes the version prefix off the path and remembers it.
func withVersion(r *http.Request) (*http.Request, error) {
	v := MaxAPIVersion
	m := versionPrefix.FindStringSubmatch(r.URL.Path)
	if m != nil {
		v = m[1]
	}
	if versions.LessThan(v, MinAPIVersion) {
		return r, cluster.Invalidf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinAPIVersion)
	}
	if versions.GreaterThan(v, MaxAPIVersion) {
		return r, cluster.Invalidf("client version %s is too new. Maximum supported API version is %s", v, MaxAPIVersion)
	}
	r = r.Clone(context.WithValue(r.Context(), versionKey{}, v))
	if m != nil {
		r.URL.Path = m[2]
		if raw := versionPrefix.FindStringSubmatch(r.URL.RawPath); raw != nil {
			r.URL.RawPath = raw[2]
		} else {
			r.URL.RawPath = ""
		}
	}
	return r, nil
}

// before reports whether the client speaks an API older than v.
func before(r *http.Request, v string) bool {
	got, _ := r.Context().Value(versionKey{}).(string)
	return got != "" && versions.LessThan(got, v)
}

// swarmHeader is the value of the Swarm header of ping: the node's state and,
// in a swarm, its part in it.
func (s *Server) swarmHeader(ctx context.Context) string {
	info := s.Member.Info(ctx)
	if info.LocalNodeState != swarm.LocalNodeStateActive {
		return string(info.LocalNodeState)
	}
	if info.ControlAvailable {
		return string(info.LocalNodeState) + "/manager"
	}
	return string(info.LocalNodeState) + "/worker"
}
