package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
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
	filters, err := knownFilters(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
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
func matchNetwork(n network.Inspect, f filters.Filters) bool {
	return filters.Labels(f, "label", n.Labels) &&
		filters.Exact(f, "driver", n.Driver) && filters.Prefixed(f, "id", n.ID) && filters.Exact(f, "scope", n.Scope) &&
		filters.Any(f, "name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
		filters.Any(f, "type", func(v string) bool { return (v == "builtin") == isPredefined(n.Name) })
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

// allNetworks lists the host's networks, and on a manager the swarm's, each once.
// What the swarm knows of a network wins; who is in it here is the host's to say.
func (s *Server) allNetworks(ctx context.Context) ([]network.Inspect, error) {
	local, err := s.Networks.List(ctx)
	if err != nil {
		return nil, err
	}
	wide, err := s.wideNetworks(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]network.Inspect, len(wide))
	for _, n := range wide {
		byID[n.ID] = n
	}
	for i, n := range local {
		if w, ok := byID[n.ID]; ok {
			local[i] = mergeNetwork(w, n)
			delete(byID, n.ID)
		}
	}
	for _, n := range wide {
		if _, left := byID[n.ID]; left {
			local = append(local, n)
		}
	}
	return local, nil
}

// wideNetworks lists the swarm's networks: none where this node cannot tell.
func (s *Server) wideNetworks(ctx context.Context) ([]network.Inspect, error) {
	c, err := s.control()
	var list []network.Inspect
	if err == nil {
		list, err = c.Networks(ctx)
	}
	if errdefs.IsUnavailable(err) {
		return nil, nil
	}
	return list, err
}

func (s *Server) wideNetwork(ctx context.Context, ref string) (network.Inspect, error) {
	c, err := s.control()
	if err != nil {
		return network.Inspect{}, err
	}
	return c.Network(ctx, ref)
}

// mergeNetwork adds the host's part of a swarm network to what the swarm says.
func mergeNetwork(wide, local network.Inspect) network.Inspect {
	wide.Containers, wide.Peers = local.Containers, local.Peers
	if wide.Services == nil {
		wide.Services = local.Services
	}
	return wide
}

// findNetwork finds a network by id, name or unique prefix of its id: the host's
// first, then the swarm's.
func (s *Server) findNetwork(ctx context.Context, ref string) (network.Inspect, error) {
	local, err := s.Networks.Inspect(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return local, err
	}
	if err == nil && local.Scope != "swarm" {
		return local, nil
	}
	at := ref
	if err == nil {
		at = local.ID
	}
	wide, werr := s.wideNetwork(ctx, at)
	switch {
	case werr == nil && err == nil:
		return mergeNetwork(wide, local), nil
	case werr == nil:
		return wide, nil
	case err == nil || errdefs.IsUnavailable(werr) || errdefs.IsNotFound(werr):
		return local, err
	}
	return wide, werr
}

// findSwarmNetwork finds a network of the swarm, also one that has the name of a
// host's own: host and bridge stand for those in services.
func (s *Server) findSwarmNetwork(ctx context.Context, ref string) (network.Inspect, error) {
	wide, err := s.wideNetwork(ctx, ref)
	if err != nil {
		if errdefs.IsUnavailable(err) {
			return s.findNetwork(ctx, ref) // a worker knows what it takes part in
		}
		return wide, err
	}
	local, err := s.Networks.Inspect(ctx, wide.ID)
	if err == nil {
		return mergeNetwork(wide, local), nil
	}
	return wide, nil
}

func (s *Server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	find, scope := s.findNetwork, r.URL.Query().Get("scope")
	if scope == "swarm" {
		find = s.findSwarmNetwork
	}
	n, err := find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if scope != "" && n.Scope != scope {
		return cluster.NotFoundf("network %s not found", r.PathValue("id"))
	}
	if !boolParam(r.URL.Query(), "verbose") {
		n.Services = nil
	}
	return writeJSON(w, http.StatusOK, tidyNetwork(n))
}

// networkCreate makes a network on this host, or in the swarm if its driver
// spans hosts.
func (s *Server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	req, err := readNetwork(r)
	if err != nil {
		return err
	}
	if strings.TrimSpace(req.Name) == "" {
		return cluster.Invalidf("invalid network name: name is empty")
	}
	if isPredefined(req.Name) {
		return cluster.Deniedf("operation is not permitted on predefined %s network", req.Name)
	}
	wide := req.Driver == "overlay" || req.Scope == "swarm"
	if taken, err := s.networkNamed(r.Context(), req.Name, wide); err != nil {
		return err
	} else if taken {
		return cluster.Conflictf("network with name %s already exists", req.Name)
	}
	if !wide {
		resp, err := s.Networks.Create(r.Context(), req)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusCreated, resp)
	}
	if m := s.Member.Info(r.Context()); m.LocalNodeState == swarm.LocalNodeStateActive && !m.ControlAvailable {
		return cluster.Deniedf("Cannot create a multi-host network from a worker node. Please create the network from a manager node.")
	}
	c, err := s.control()
	if err != nil {
		return err
	}
	id, err := c.CreateNetwork(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: id})
}

// readNetwork reads a request for a network. Its subnets are checked first, for
// Docker's words about a bad one.
func readNetwork(r *http.Request) (req network.CreateRequest, err error) {
	var raw json.RawMessage
	if err := readJSON(r, &raw); err != nil {
		return req, err
	}
	var plain struct {
		IPAM struct{ Config []struct{ Subnet string } }
	}
	if json.Unmarshal(raw, &plain) == nil {
		for _, c := range plain.IPAM.Config {
			if _, err := netip.ParsePrefix(c.Subnet); err != nil && c.Subnet != "" {
				return req, cluster.Invalidf("Invalid subnet %[1]s : invalid CIDR address: %[1]s", c.Subnet)
			}
		}
	}
	if err := json.Unmarshal(raw, &req); err != nil {
		return req, cluster.Invalidf("invalid JSON: %v", err)
	}
	return req, nil
}

// networkNamed reports whether the other side (the host for a swarm network, the
// swarm for a host's) has a network of that name; its own side says so itself.
func (s *Server) networkNamed(ctx context.Context, name string, wide bool) (bool, error) {
	others := s.wideNetworks
	if wide {
		others = s.Networks.List
	}
	list, err := others(ctx)
	return slices.ContainsFunc(list, func(n network.Inspect) bool { return n.Name == name }), err
}

func (s *Server) networkRemove(w http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return noContent(w, s.removeNetwork(r.Context(), n))
}

func (s *Server) removeNetwork(ctx context.Context, n network.Inspect) error {
	if n.Scope == "swarm" {
		c, err := s.control()
		if err != nil {
			return err
		}
		return c.RemoveNetwork(ctx, n.ID)
	}
	return s.Networks.Remove(ctx, n.ID)
}

func (s *Server) networkConnect(w http.ResponseWriter, r *http.Request) error {
	var req network.ConnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	return s.Containers.ConnectNetwork(r.Context(), req.Container, r.PathValue("id"), req.EndpointConfig)
}

func (s *Server) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	var req network.DisconnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	return s.Containers.DisconnectNetwork(r.Context(), req.Container, r.PathValue("id"), req.Force)
}

// networkPrune removes the user's networks that nobody uses.
func (s *Server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "label", "label!", "until")
	if err != nil {
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
		err := s.removeNetwork(r.Context(), n)
		switch {
		case err == nil:
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		case errdefs.IsConflict(err), errdefs.IsNotFound(err), errdefs.IsPermissionDenied(err),
			errdefs.IsFailedPrecondition(err), errdefs.IsUnavailable(err):
		default:
			return err
		}
	}
	return writeJSON(w, http.StatusOK, report)
}
