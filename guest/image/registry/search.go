package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// hubIndex is the host that searches Docker's hub.
	hubIndex = "index.docker.io"
	// defaultFound and maxFound bound how many repositories a search tells.
	defaultFound, maxFound = 25, 100
	// maxSearchAnswer bounds a search's answer, in bytes.
	maxSearchAnswer = 4 << 20
)

// Found is a repository that a search has found.
type Found struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
}

// Search looks for repositories by version 1 of the registry API, which Docker's hub
// has kept for it: for "term" there, for "host/term" at that host. limit 0 is 25. What
// is not the request's fault is an error of no kind of errdefs.
func (c *Client) Search(ctx context.Context, term string, limit int, auth Auth) ([]Found, error) {
	if limit == 0 {
		limit = defaultFound
	}
	if limit < 1 || limit > maxFound {
		return nil, say(errdefs.ErrInvalidArgument, "limit %d is outside the range of [1, %d]", limit, maxFound)
	}
	if strings.Contains(term, "://") {
		return nil, say(errdefs.ErrInvalidArgument, "invalid repository name: repository name (%s) should not have a scheme", term)
	}
	at := url.URL{Scheme: "https", Host: hubIndex, Path: "/v1/search"}
	client := c.secure
	host, rest, ok := strings.Cut(term, "/")
	switch ok = ok && (host == "localhost" || strings.ContainsAny(host, ".:")); {
	case ok && host != "docker.io" && host != hubIndex:
		rh, err := c.registryHost(ctx, host)
		if err != nil {
			return nil, err
		}
		at.Scheme, at.Host, client, term = rh.Scheme, host, rh.Client, rest
	case ok:
		term = strings.TrimPrefix(rest, "library/")
	default:
		term = strings.TrimPrefix(term, "library/")
	}
	at.RawQuery = "q=" + url.QueryEscape(term) + "&n=" + strconv.Itoa(limit)
	return search(ctx, client, at.String(), auth)
}

func search(ctx context.Context, client *http.Client, at string, auth Auth) ([]Found, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, say(errdefs.ErrInvalidArgument, "error building request: %w", err)
	}
	if auth.Username != "" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	resp, err := client.Do(req)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, errors.New(err.Error()) // whose fault it is, docker does not say
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("unexpected status code %d", resp.StatusCode)
	}
	return decodeFound(io.LimitReader(resp.Body, maxSearchAnswer))
}

func decodeFound(r io.Reader) ([]Found, error) {
	var answer struct{ Results []Found }
	if err := json.NewDecoder(r).Decode(&answer); err != nil {
		return nil, fmt.Errorf("error decoding registry search results: %w", err)
	}
	return answer.Results, nil
}
