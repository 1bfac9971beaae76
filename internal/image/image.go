// Package image keeps the images of one host in containerd's stores: pull, load,
// push, save, import, tag, list, inspect, remove. It never runs anything. engine,
// httpapi, agent and whoami call it.
package image

import (
	"log/slog"
	"net/netip"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
)

// Config is what New makes a Store from. Only Client is needed.
type Config struct {
	Client *containerd.Client
	// Namespace is containerd's; empty means the client's default one.
	Namespace string
	// Snapshotter is "overlayfs" unless set.
	Snapshotter string
	// Insecure lists registries (host, host:port or CIDR) that may be reached
	// without verified TLS or by plain HTTP. Loopback always may.
	Insecure []string
	// Mirrors are URLs that are asked for docker.io's images first.
	Mirrors []string
	// Publish hears of what happens to images; *engine.Engine's has this form.
	Publish func(typ events.Type, action events.Action, actor events.Actor)
	// InUse returns a container made from the image, a running one if there is
	// one, or "".
	InUse func(imageID string) (containerID string, running bool)
	Log   *slog.Logger
}

// Store is the images of one daemon. A ref is a name with an optional tag or
// digest, an id, or a unique prefix of one.
//
// Names are containerd's image records in their full form: one record for each
// tag (docker.io/library/x:latest), one for each digest an image was pulled by
// (docker.io/library/x@sha256:…), and "dangling@sha256:…" for an image that has
// lost its last name. Containerd's garbage collector does the rest.
type Store struct {
	client      *containerd.Client
	ns          string
	snapshotter string
	insecure    map[string]bool
	cidrs       []netip.Prefix
	mirrors     []string
	publish     func(events.Type, events.Action, events.Actor)
	inUse       func(string) (string, bool)
	log         *slog.Logger

	loading  chan struct{}                   // held by the one Load that reads an archive
	fetching map[digest.Digest]chan struct{} // held by the one Pull of a target; guarded by mu
	unpacks  singleflight.Group
	mu       sync.Mutex
	metas    map[digest.Digest]*meta // by the target's digest; guarded by mu
	usage    map[digest.Digest]int64 // by chain id: bytes of that layer alone; guarded by mu
	maxCache int
}

// New makes a Store. It reads nothing.
func New(cfg Config) *Store {
	s := &Store{
		client: cfg.Client, ns: cfg.Namespace, snapshotter: cfg.Snapshotter, insecure: map[string]bool{},
		mirrors: cfg.Mirrors, publish: cfg.Publish, inUse: cfg.InUse, log: cfg.Log,
		loading: make(chan struct{}, 1), fetching: map[digest.Digest]chan struct{}{}, metas: map[digest.Digest]*meta{}, usage: map[digest.Digest]int64{}, maxCache: 4096,
	}
	if s.snapshotter == "" {
		s.snapshotter = "overlayfs"
	}
	if s.publish == nil {
		s.publish = func(events.Type, events.Action, events.Actor) {}
	}
	if s.inUse == nil {
		s.inUse = func(string) (string, bool) { return "", false }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, r := range append([]string{"127.0.0.0/8", "::1/128"}, cfg.Insecure...) {
		if p, err := netip.ParsePrefix(r); err == nil {
			s.cidrs = append(s.cidrs, p)
		} else {
			s.insecure[r] = true
		}
	}
	return s
}

// Image is what a container is made from.
type Image struct {
	ID     string // sha256:… of the configuration
	Name   string // the familiar name it was found by
	Config ocispec.Image
	// Ext holds what Docker adds to the configuration: health check, ONBUILD, shell.
	Ext dockerspec.DockerOCIImageConfigExt
	// ChainID is the snapshot its layers are unpacked into.
	ChainID string
	// RepoDigest is name@sha256:… where it is known.
	RepoDigest string
}

// Progress receives what a client is shown while an image is moved, one message
// after the other.
type Progress func(jsonstream.Message)

// ListOptions are those of image ls.
type ListOptions struct {
	All     bool
	Filters map[string]map[string]bool
}
