package image

import (
	"context"
	"strings"
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
