package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/skep-dev/skep/internal/cluster"
	networks "github.com/skep-dev/skep/internal/network"
)

func (s *Server) networkRoutes() []route {
	return []route{
		{"GET /networks", s.networkList},
		{"POST /networks/create", s.networkCreate},
		{"POST /networks/prune", s.networkPrune},
		{"GET /networks/{id}", s.networkInspect},
		{"POST /networks/{id}/connect", s.networkConnect},
		{"POST /networks/{id}/disconnect", s.networkDisconnect},
		{"DELETE /networks/{id}", s.networkRemove},
	}
}

func (s *Server) networkList(w http.ResponseWriter, r *http.Request) error {
	filters, err := filterParam(r.URL.Query())
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return err
	}
	for t := range filters["type"] {
		if t != "custom" && t != "builtin" {
			return cluster.Invalidf("invalid filter: 'type'='%s'", t)
		}
	}
	dangling, err := boolFilter(filters, "dangling", false)
	if err != nil {
		return err
	}
	all, err := s.allNetworks(r.Context())
	if err != nil {
		return err
	}
	list := []network.Summary{}
	for _, n := range all {
		if !matchNetwork(n, filters) {
			continue
		}
		if len(filters["dangling"]) > 0 && dangling == (len(n.Containers) > 0 || isPredefined(n.Name)) {
			continue
		}
		list = append(list, network.Summary{Network: tidyNetwork(n).Network})
	}
	return writeJSON(w, http.StatusOK, list)
}

// matchNetwork applies the filters of network ls.
func matchNetwork(n network.Inspect, filters map[string]map[string]bool) bool {
	any := func(key string, match func(v string) bool) bool {
		if len(filters[key]) == 0 {
			return true
		}
		for v := range filters[key] {
			if match(v) {
				return true
			}
		}
		return false
	}
	for want := range filters["label"] {
		if !hasLabel(n.Labels, want) {
			return false
		}
	}
	return any("driver", func(v string) bool { return n.Driver == v }) &&
		any("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
		any("name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
		any("scope", func(v string) bool { return n.Scope == v }) &&
		any("type", func(v string) bool { return (v == "builtin") == isPredefined(n.Name) })
}

// hasLabel reports whether labels hold what a label filter wants: key or key=value.
func hasLabel(labels map[string]string, want string) bool {
	key, value, exact := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!exact || got == value)
}

// tidyNetwork makes absent maps and lists empty ones, as clients expect them.
func tidyNetwork(n network.Inspect) network.Inspect {
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	return n
}

func (s *Server) allNetworks(ctx context.Context) ([]network.Inspect, error) {
	return s.Networks.List(ctx)
}

func (s *Server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	n, err := s.Networks.Inspect(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, tidyNetwork(n))
}

func (s *Server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if strings.TrimSpace(req.Name) == "" {
		return cluster.Invalidf("invalid network name: name is empty")
	}
	if isPredefined(req.Name) {
		return cluster.Deniedf("operation is not permitted on predefined %s network", req.Name)
	}
	resp, err := s.Networks.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, resp)
}

func (s *Server) networkRemove(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.Networks.Remove(r.Context(), r.PathValue("id")))
}

func (s *Server) networkConnect(w http.ResponseWriter, r *http.Request) error {
	var req network.ConnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if nc, ok := s.Containers.(networkConnector); ok {
		return nc.ConnectNetwork(r.Context(), req.Container, r.PathValue("id"), req.EndpointConfig)
	}
	c, err := s.runningContainer(r.Context(), req.Container)
	if err != nil {
		return err
	}
	_, err = s.Networks.Connect(r.Context(), c.ID, endpointRequest(r.PathValue("id"), req.EndpointConfig))
	return err
}

func (s *Server) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	var req network.DisconnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if nc, ok := s.Containers.(networkConnector); ok {
		return nc.DisconnectNetwork(r.Context(), req.Container, r.PathValue("id"), req.Force)
	}
	c, err := s.Containers.Inspect(r.Context(), req.Container, false)
	if err != nil {
		return err
	}
	return s.Networks.Disconnect(r.Context(), c.ID, r.PathValue("id"), req.Force)
}

func (s *Server) runningContainer(ctx context.Context, ref string) (container.InspectResponse, error) {
	c, err := s.Containers.Inspect(ctx, ref, false)
	if err != nil {
		return c, err
	}
	if c.State == nil || !c.State.Running {
		return c, cluster.NotImplementedf("connecting a container that does not run to a network is not implemented: name its networks when it is created")
	}
	return c, nil
}

// endpointRequest turns the API's endpoint settings into the network room's wish.
func endpointRequest(ref string, cfg *network.EndpointSettings) networks.EndpointRequest {
	req := networks.EndpointRequest{Network: ref}
	if cfg == nil {
		return req
	}
	req.Aliases, req.Links, req.Opts = cfg.Aliases, cfg.Links, cfg.DriverOpts
	if len(cfg.MacAddress) > 0 {
		req.MAC = cfg.MacAddress.String()
	}
	if cfg.IPAMConfig != nil && cfg.IPAMConfig.IPv4Address != (netip.Addr{}) {
		req.Addr = cfg.IPAMConfig.IPv4Address
	}
	return req
}

// networkPrune removes the user's networks that nobody uses.
func (s *Server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	filters, err := filterParam(r.URL.Query())
	if err != nil {
		return err
	}
	if err := checkFilters(filters, "label", "label!", "until"); err != nil {
		return err
	}
	keep, err := pruneFilter(filters)
	if err != nil {
		return err
	}
	list, err := s.allNetworks(r.Context())
	if err != nil {
		return err
	}
	report := network.PruneReport{}
	for _, n := range list {
		if isPredefined(n.Name) || n.Ingress || len(n.Containers) > 0 || !keep(n.Labels, n.Created.Unix()) {
			continue
		}
		err := s.Networks.Remove(r.Context(), n.ID)
		switch {
		case err == nil:
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		case errdefs.IsConflict(err), errdefs.IsNotFound(err), errdefs.IsPermissionDenied(err), errdefs.IsFailedPrecondition(err):
		default:
			return err
		}
	}
	return writeJSON(w, http.StatusOK, report)
}
