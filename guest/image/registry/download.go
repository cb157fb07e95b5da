package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
)

// Download fetches a file by HTTP or HTTPS, as registries are reached. The caller
// closes it; size is -1 when the server does not tell.
func (c *Client) Download(ctx context.Context, address string) (body io.ReadCloser, size int64, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		if err == nil {
			err = errors.New("want a URL of http or https")
		}
		return nil, 0, say(errdefs.ErrInvalidArgument, "cannot fetch %q: %w", address, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, say(errdefs.ErrInvalidArgument, "cannot fetch %q: %w", address, err)
	}
	resp, err := c.secure.Do(req)
	if err != nil {
		return nil, 0, say(errdefs.ErrUnavailable, "cannot fetch %s: %w", u.Redacted(), err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, resp.ContentLength, nil
	}
	resp.Body.Close()
	var kind error = errdefs.ErrUnavailable
	switch {
	case resp.StatusCode == http.StatusNotFound:
		kind = errdefs.ErrNotFound
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		kind = errdefs.ErrPermissionDenied
	case resp.StatusCode < 500:
		kind = errdefs.ErrInvalidArgument
	}
	return nil, 0, say(kind, "failed to GET %s with status %s", u.Redacted(), resp.Status)
}
