package image

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

// resolver talks to the registries for one call, with its caller's credentials.
func (s *Store) resolver(auth *registry.AuthConfig) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(host string) ([]docker.RegistryHost, error) {
		var hosts []docker.RegistryHost
		if host == "docker.io" {
			for _, m := range s.mirrors {
				h, err := s.mirror(m)
				if err != nil {
					return nil, err
				}
				hosts = append(hosts, h)
			}
		}
		return append(hosts, s.origin(host, auth)), nil
	}})
}

func (s *Store) mirror(raw string) (docker.RegistryHost, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return docker.RegistryHost{}, cluster.Invalidf("invalid mirror: %q", raw)
	}
	client := s.httpClient(u.Host)
	return docker.RegistryHost{
		Client: client, Authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(client)),
		Host: u.Host, Scheme: u.Scheme, Path: strings.TrimSuffix(u.Path, "/") + "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}, nil
}

func (s *Store) origin(host string, auth *registry.AuthConfig) docker.RegistryHost {
	if host == "docker.io" {
		host = "registry-1.docker.io"
	}
	client := s.httpClient(host)
	h := docker.RegistryHost{
		Client: client, Host: host, Scheme: "https", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
	if auth != nil && auth.RegistryToken != "" {
		h.Header = http.Header{"Authorization": {"Bearer " + auth.RegistryToken}}
		return h
	}
	h.Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		return credentials(auth)
	}))
	return h
}

func credentials(auth *registry.AuthConfig) (user, secret string, err error) {
	switch {
	case auth == nil:
		return "", "", nil
	case auth.IdentityToken != "":
		return "", auth.IdentityToken, nil
	case auth.Username == "" && auth.Auth != "":
		raw, err := base64.StdEncoding.DecodeString(auth.Auth)
		if err != nil {
			return "", "", cluster.Invalidf("registry credentials: %v", err)
		}
		user, secret, _ = strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
		return user, secret, nil
	}
	return auth.Username, auth.Password, nil
}

// httpClient returns a client for a registry. An insecure one's certificate is
// not verified, and plain HTTP is tried where TLS is not spoken.
func (s *Store) httpClient(host string) *http.Client {
	if !s.isInsecure(host) {
		return &http.Client{Transport: answers{docker.DefaultHTTPTransport(nil)}}
	}
	return &http.Client{Transport: answers{docker.NewHTTPFallback(docker.DefaultHTTPTransport(&tls.Config{InsecureSkipVerify: true}))}}
}

func (s *Store) isInsecure(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	if s.insecure[host] || s.insecure[name] || name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	for _, p := range s.cidrs {
		if p.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

const noPlatform = "no matching manifest in the manifest list entries"

// Digest asks the registry for what ref points at and its platforms, as the
// /distribution endpoint answers.
func (s *Store) Digest(ctx context.Context, ref string, auth *registry.AuthConfig) (registry.DistributionInspect, error) {
	var out registry.DistributionInspect
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return out, cluster.Invalidf("%v", err)
	}
	named = reference.TagNameOnly(named)
	r := s.resolver(auth)
	full, desc, err := r.Resolve(ctx, named.String())
	if err != nil {
		return out, registryError(err, named)
	}
	out.Descriptor = ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	fetcher, err := r.Fetcher(ctx, full)
	if err != nil {
		return out, registryError(err, named)
	}
	out.Platforms, err = fetchPlatforms(ctx, fetcher, desc)
	if err != nil {
		return out, registryError(err, named)
	}
	return out, nil
}

func fetchPlatforms(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) ([]ocispec.Platform, error) {
	if images.IsIndexType(desc.MediaType) {
		var idx ocispec.Index
		if err := fetchJSON(ctx, f, desc, &idx); err != nil {
			return nil, err
		}
		var all []ocispec.Platform
		for _, m := range idx.Manifests {
			if m.Platform != nil {
				all = append(all, *m.Platform)
			}
		}
		return all, nil
	}
	var m ocispec.Manifest
	if err := fetchJSON(ctx, f, desc, &m); err != nil {
		return nil, err
	}
	var cfg ocispec.Image
	if err := fetchJSON(ctx, f, m.Config, &cfg); err != nil {
		return nil, err
	}
	if cfg.OS == "" && cfg.Architecture == "" {
		return nil, nil
	}
	return []ocispec.Platform{cfg.Platform}, nil
}

func fetchJSON(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor, v any) error {
	if err := fetchable(desc); err != nil {
		return err
	}
	body, err := f.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxManifest))
	if err != nil {
		return err
	}
	sum := desc.Digest.Verifier()
	sum.Write(raw)
	if !sum.Verified() {
		return cluster.Invalidf("%s: content does not match its digest", desc.Digest)
	}
	return json.Unmarshal(raw, v)
}

// registryError puts what went wrong with a registry into Docker's words.
func registryError(err error, named reference.Named) error {
	var status remoteerrors.ErrUnexpectedStatus
	var request *url.Error
	denied := func(why string) error {
		return cluster.NotFoundf("pull access denied for %s, repository does not exist or may require 'docker login': %s", reference.FamiliarName(named), why)
	}
	const refused = "denied: requested access to the resource is denied"
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case strings.Contains(err.Error(), "no basic auth credentials"):
		return denied("no basic auth credentials")
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return denied(refused)
	case errors.As(err, &status):
		if status.StatusCode == http.StatusUnauthorized && strings.Contains(err.Error(), "oauth token") {
			return errdefs.ErrUnauthenticated.WithMessage("unauthorized: incorrect username or password")
		}
		if status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden {
			return denied(refused)
		}
		return fmt.Errorf("received unexpected HTTP status: %s", status.Status)
	case errors.As(err, &request):
		if u, perr := url.Parse(request.URL); perr == nil {
			return cluster.Unavailablef("Get \"%s://%s/v2/\": %v", u.Scheme, u.Host, request.Err)
		}
	case errdefs.IsNotFound(err) && strings.Contains(err.Error(), "no match for platform"):
		return cluster.NotFoundf("%s", noPlatform)
	case errdefs.IsNotFound(err):
		return cluster.NotFoundf("manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(named))
	}
	return err
}
