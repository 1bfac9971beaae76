package layers

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	bolt "go.etcd.io/bbolt"
)

// nsStore keeps containerd's namespaces, each call in a transaction of its own.
type nsStore struct{ db *metadata.DB }

func (n nsStore) Create(ctx context.Context, namespace string, labels map[string]string) error {
	return n.db.Update(func(tx *bolt.Tx) error {
		return metadata.NewNamespaceStore(tx).Create(ctx, namespace, labels)
	})
}

func (n nsStore) Labels(ctx context.Context, namespace string) (labels map[string]string, err error) {
	err = n.db.View(func(tx *bolt.Tx) error {
		labels, err = metadata.NewNamespaceStore(tx).Labels(ctx, namespace)
		return err
	})
	return labels, err
}

func (n nsStore) SetLabel(ctx context.Context, namespace, key, value string) error {
	return n.db.Update(func(tx *bolt.Tx) error {
		return metadata.NewNamespaceStore(tx).SetLabel(ctx, namespace, key, value)
	})
}

func (n nsStore) List(ctx context.Context) (names []string, err error) {
	err = n.db.View(func(tx *bolt.Tx) error {
		names, err = metadata.NewNamespaceStore(tx).List(ctx)
		return err
	})
	return names, err
}

func (n nsStore) Delete(ctx context.Context, namespace string, opts ...namespaces.DeleteOpts) error {
	return n.db.Update(func(tx *bolt.Tx) error {
		return metadata.NewNamespaceStore(tx).Delete(ctx, namespace, opts...)
	})
}

func (s *Store) ensureNamespace(ctx context.Context) error {
	err := nsStore{s.db}.Create(ctx, s.Namespace, nil)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// introspector answers what containerd's client asks before it unpacks an image:
// which platforms a snapshotter can hold.
type introspector struct {
	snaps map[string]snapshots.Snapshotter
}

func (i introspector) Plugins(_ context.Context, fs ...string) (*api.PluginsResponse, error) {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	p := platforms.DefaultSpec()
	var resp api.PluginsResponse
	for id := range i.snaps {
		found := filter.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			switch {
			case len(path) == 1 && path[0] == "type":
				return string(plugins.SnapshotPlugin), true
			case len(path) == 1 && path[0] == "id":
				return id, true
			}
			return "", false
		}))
		if found {
			resp.Plugins = append(resp.Plugins, &api.Plugin{
				Type: string(plugins.SnapshotPlugin), ID: id,
				Platforms: []*types.Platform{{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}},
			})
		}
	}
	return &resp, nil
}

func (introspector) Server(context.Context) (*api.ServerResponse, error) {
	return &api.ServerResponse{}, nil
}

func (introspector) PluginInfo(_ context.Context, typ, id string, _ any) (*api.PluginInfoResponse, error) {
	return nil, fmt.Errorf("plugin %s.%s: %w", typ, id, errdefs.ErrNotFound)
}
