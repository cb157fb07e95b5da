package registry

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// Login asks a registry, "registry.lan:5000", whether it takes auth. The error is
// errdefs' Unauthenticated when it does not.
func (c *Client) Login(ctx context.Context, host string, auth Auth) error {
	hosts, err := c.registryHosts(ctx, host, auth)
	if err != nil {
		return err
	}
	h := hosts[0]
	base := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/"}
	status, err := c.greet(ctx, h, base.String())
	switch {
	case err != nil:
		return say(errdefs.ErrUnauthenticated, "login attempt to %s failed: %w", base.String(), err)
	case status == http.StatusOK:
		return nil
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return say(errdefs.ErrUnauthenticated, "login attempt to %s failed with status: %d %s", base.String(), status, http.StatusText(status))
	}
	return say(errdefs.ErrUnavailable, "login attempt to %s failed with status: %d %s", base.String(), status, http.StatusText(status))
}

// greet asks for the API's root, with what the registry demands, and returns the
// last status.
func (c *Client) greet(ctx context.Context, h docker.RegistryHost, at string) (int, error) {
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
		if err != nil {
			return 0, err
		}
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return 0, err
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return 0, err
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized || try > 0 {
			return resp.StatusCode, nil
		}
		if err := h.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return 0, err
		}
	}
}
