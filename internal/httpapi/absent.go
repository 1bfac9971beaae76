package httpapi

import (
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/plugin"

	"github.com/skep-dev/skep/internal/cluster"
)

// absent answers 501 and says by name what skep does not do yet. what is in the
// singular.
func absent(what string) handler {
	return func(http.ResponseWriter, *http.Request) error {
		return cluster.NotImplementedf("%s is not built yet", what)
	}
}

// absentRoutes are the parts of the API that skep knows of and does not have.
// What can be answered truthfully for a daemon without the thing (no plugins, an
// empty build cache) is, since clients ask for it in passing.
func (s *Server) absentRoutes() []route {
	return []route{
		{"POST /build", absent("building images (docker build)")},
		{"POST /build/prune", buildPrune},
		{"POST /build/cancel", absent("building images (docker build)")},
		{"POST /session", absent("a BuildKit session (docker build)")},
		{"POST /grpc", absent("a BuildKit session (docker build)")},
		{"POST /commit", absent("making an image of a container (docker commit)")},
		{"GET /plugins", pluginList},
		{"GET /plugins/privileges", absent("managing plugins (docker plugin)")},
		{"GET /plugins/{name...}", pluginInspect},
		{"POST /plugins/{name...}", absent("managing plugins (docker plugin)")},
		{"DELETE /plugins/{name...}", absent("managing plugins (docker plugin)")},
	}
}

func buildPrune(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, build.CachePruneReport{})
}

func pluginList(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, plugin.ListResponse{})
}

// pluginInspect knows of no plugin: docker inspect asks for one last of all.
func pluginInspect(_ http.ResponseWriter, r *http.Request) error {
	return cluster.NotFoundf("plugin %q not found", strings.TrimSuffix(r.PathValue("name"), "/json"))
}
