// Package volume keeps a host's local volumes: named directories under the data
// root, with their labels and mount options. It never knows of containers except
// by the ids that hold a volume. engine and httpapi call it.
package volume

import (
	"context"

	"github.com/moby/moby/api/types/volume"

	"github.com/skep-dev/skep/internal/cluster"
)

var errTodo = cluster.NotImplementedf("not implemented")

// Store is the volumes of one daemon.
type Store struct{}

// Create makes a volume, or returns the one of that name. An empty name makes an
// anonymous one.
func (s *Store) Create(ctx context.Context, req volume.CreateRequest) (volume.Volume, error) {
	return volume.Volume{}, errTodo
}

// Inspect returns a volume; an unknown one is errdefs.ErrNotFound.
func (s *Store) Inspect(ctx context.Context, name string) (volume.Volume, error) {
	return volume.Volume{}, errTodo
}

// List returns the volumes that pass the filters.
func (s *Store) List(ctx context.Context, filters map[string]map[string]bool) (volume.ListResponse, error) {
	return volume.ListResponse{}, errTodo
}

// Remove removes a volume that no container holds.
func (s *Store) Remove(ctx context.Context, name string, force bool) error { return errTodo }

// Mount makes a volume's data available for a container and returns its path.
// Each Mount of a holder is undone by one Unmount. Both are idempotent.
func (s *Store) Mount(ctx context.Context, name, holder string) (path string, err error) {
	return "", errTodo
}

// Unmount gives a volume back.
func (s *Store) Unmount(ctx context.Context, name, holder string) error { return errTodo }
