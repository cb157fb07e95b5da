package image

import (
	"context"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthvm/berth/guest/image/registry"
)

// Login asks a registry whether it takes credentials. server is as docker's
// configuration names it: a host, or a URL.
func (s *Store) Login(ctx context.Context, server string, auth Auth) error {
	if _, rest, ok := strings.Cut(server, "://"); ok {
		server = rest
	}
	server, _, _ = strings.Cut(server, "/")
	if server == "" || server == "index.docker.io" || server == "registry-1.docker.io" {
		server = "docker.io"
	}
	return s.registry.Login(ctx, server, auth)
}

// Search looks for repositories, as registry.Client's Search does.
func (s *Store) Search(ctx context.Context, term string, limit int, auth Auth) ([]registry.Found, error) {
	return s.registry.Search(ctx, term, limit, auth)
}

// Distribution asks a registry what a reference points at, and for which platforms
// it is.
func (s *Store) Distribution(ctx context.Context, ref string, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	named, err := parseRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return s.registry.Inspect(ctx, named, auth)
}

// Download fetches a file by HTTP or HTTPS. The caller closes it; size is -1 when
// the server does not tell.
func (s *Store) Download(ctx context.Context, url string) (body io.ReadCloser, size int64, err error) {
	return s.registry.Download(ctx, url)
}
