package httpapi

import (
	"context"

	"github.com/moby/moby/api/types/swarm"
)

// Swarm is this node's part in a swarm.
type Swarm interface {
	// Info is the Swarm section of /info; it never fails and answers at once.
	Info(ctx context.Context) swarm.Info
}

func (s *Server) swarmRoutes() []route { return nil }
