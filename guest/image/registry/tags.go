package registry

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

const (
	maxTagsPage = 4 << 20 // bytes of one answer
	maxTags     = 10000
)

// Tags lists the tags of a repository.
func (c *Client) Tags(ctx context.Context, named reference.Named, auth Auth) ([]string, error) {
	hosts, err := c.registryHosts(ctx, reference.Domain(named), auth)
	if err != nil {
		return nil, err
	}
	host := hosts[0]
	base := url.URL{Scheme: host.Scheme, Host: host.Host, Path: host.Path + "/" + reference.Path(named) + "/tags/list"}
	next := base
	var tags []string
	for {
		page, link, err := c.tagsPage(ctx, host, next.String(), reference.Path(named))
		if err != nil {
			return nil, Explain(err, named, Pull)
		}
		tags = append(tags, page...)
		if link == "" {
			return tags, nil
		}
		if len(tags) > maxTags || len(page) == 0 {
			return nil, say(errdefs.ErrResourceExhausted, "registry %s lists more than %d tags", host.Host, maxTags)
		}
		// Only the query is taken over: the registry must not send us elsewhere.
		if to, err := url.Parse(link); err == nil {
			next.RawQuery = to.RawQuery
		}
	}
}

func (c *Client) tagsPage(ctx context.Context, host docker.RegistryHost, at, repository string) (tags []string, next string, err error) {
	ctx = docker.WithScope(ctx, "repository:"+repository+":pull")
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
		if err != nil {
			return nil, "", err
		}
		if err := host.Authorizer.Authorize(ctx, req); err != nil {
			return nil, "", err
		}
		resp, err := host.Client.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusUnauthorized && try == 0 {
			if err := host.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
				return nil, "", err
			}
			continue
		}
		if resp.StatusCode != http.StatusOK {
			return nil, "", remoteerrors.NewUnexpectedStatusErr(resp)
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxTagsPage)).Decode(&page); err != nil {
			return nil, "", say(errdefs.ErrInvalidArgument, "registry's list of tags is not valid: %w", err)
		}
		return page.Tags, nextLink(resp.Header.Get("Link")), nil
	}
}

// nextLink reads the target of a Link header that says rel="next".
func nextLink(header string) string {
	target, params, ok := strings.Cut(header, ">")
	if !ok || !strings.Contains(params, `rel="next"`) {
		return ""
	}
	_, target, ok = strings.Cut(target, "<")
	if !ok {
		return ""
	}
	return target
}
