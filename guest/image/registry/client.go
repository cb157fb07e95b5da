package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// Options configure a Client; the zero value is usable.
type Options struct {
	// Dial connects to a registry or to the proxy, by host name; nil means a
	// net.Dialer with a time limit.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Insecure are hosts ("registry.lan:5000", "registry.lan") and networks
	// ("10.0.0.0/8") whose certificates are not checked and that may speak plain
	// HTTP. Loopback always may.
	Insecure []string
	// Roots verifies the others; nil means the system's roots.
	Roots *x509.CertPool
	// Proxy chooses the proxy of a request; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
	// Stall ends a request in which no byte moved for so long; zero means 30 s.
	Stall time.Duration
	// Retries is how often a request is repeated; zero means 4, negative never.
	Retries int
	// Backoff is the pause before the first repetition; each later one is twice
	// as long, to at most maxBackoff. Zero means 250 ms.
	Backoff time.Duration
	// UserAgent is what requests call their sender; empty means "berth".
	UserAgent string
}

// Auth is how a registry is told who asks.
type Auth struct {
	Username      string
	Password      string
	IdentityToken string // exchanged for access tokens
	RegistryToken string // a bearer token, sent as it is
}

// Client makes resolvers that share connections. It is safe for concurrent use.
type Client struct {
	opts     Options
	hosts    map[string]bool
	networks []*net.IPNet
	secure   *http.Client
	insecure *http.Client
}

// New returns a Client. An entry of Insecure that is neither a host nor a
// network is an error.
func New(opts Options) (*Client, error) {
	if opts.Stall <= 0 {
		opts.Stall = 30 * time.Second
	}
	switch {
	case opts.Retries == 0:
		opts.Retries = 4
	case opts.Retries < 0:
		opts.Retries = 0
	}
	if opts.Backoff <= 0 {
		opts.Backoff = 250 * time.Millisecond
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "berth"
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: 15 * time.Second}).DialContext
	}
	c := &Client{opts: opts, hosts: map[string]bool{}}
	for _, entry := range append([]string{"127.0.0.0/8", "::1/128"}, opts.Insecure...) {
		if _, network, err := net.ParseCIDR(entry); err == nil {
			c.networks = append(c.networks, network)
			continue
		}
		if entry == "" || strings.ContainsAny(entry, "/ ") {
			return nil, fmt.Errorf("insecure registry %q: want host, host:port or a network in CIDR form", entry)
		}
		c.hosts[strings.ToLower(entry)] = true
	}
	c.secure = c.client(&tls.Config{RootCAs: opts.Roots, MinVersion: tls.VersionTLS12})
	c.insecure = c.client(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the user named these hosts
	return c, nil
}

func (c *Client) client(config *tls.Config) *http.Client {
	return &http.Client{Transport: &transport{
		stall:   c.opts.Stall,
		retries: c.opts.Retries,
		backoff: c.opts.Backoff,
		base: &http.Transport{
			Proxy:                 c.opts.Proxy,
			DialContext:           c.opts.Dial,
			TLSClientConfig:       config,
			ForceAttemptHTTP2:     true,
			MaxIdleConns:          16,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       20 * time.Second,
			TLSHandshakeTimeout:   min(c.opts.Stall, 10*time.Second),
			ResponseHeaderTimeout: c.opts.Stall,
			ExpectContinueTimeout: 2 * time.Second,
			DisableCompression:    true,
		},
		agent: c.agent,
	}}
}

// Close drops the idle connections. Requests under way go on.
func (c *Client) Close() {
	c.secure.CloseIdleConnections()
	c.insecure.CloseIdleConnections()
}

// Insecure says whether a registry may be asked without a verified certificate.
func (c *Client) Insecure(host string) bool {
	host = strings.ToLower(host)
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" || c.hosts[host] || c.hosts[name] {
		return true
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	if ip == nil {
		return false
	}
	for _, network := range c.networks {
		if network.Contains(ip) {
			return true
		}
	}
	return false
}

// Resolver returns a resolver that asks as auth says. An insecure host is probed
// for TLS with the first use of the resolver; ctx bounds the probe.
func (c *Client) Resolver(ctx context.Context, auth Auth, tracker docker.StatusTracker) remotes.Resolver {
	known := map[string][]docker.RegistryHost{} // a resolver asks one host, one after the other
	return docker.NewResolver(docker.ResolverOptions{
		Tracker: tracker,
		Headers: http.Header{"User-Agent": {c.agent(ctx)}},
		Hosts: func(host string) ([]docker.RegistryHost, error) {
			if hosts, ok := known[host]; ok {
				return hosts, nil
			}
			hosts, err := c.registryHosts(ctx, host, auth)
			if err == nil {
				known[host] = hosts
			}
			return hosts, err
		},
	})
}

// Hosts returns how registries are reached, for a resolver that finds its own
// credentials. An insecure host is probed for TLS at each call.
func (c *Client) Hosts() docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		ctx, cancel := context.WithTimeout(context.Background(), c.opts.Stall)
		defer cancel()
		rh, err := c.registryHost(ctx, host)
		return []docker.RegistryHost{rh}, err
	}
}

// Transport makes requests of any kind as those to registries are made.
func (c *Client) Transport() http.RoundTripper { return c.secure.Transport }

func (c *Client) registryHosts(ctx context.Context, host string, auth Auth) ([]docker.RegistryHost, error) {
	rh, err := c.registryHost(ctx, host)
	if err != nil {
		return nil, err
	}
	rh.Authorizer = newAuthorizer(rh.Client, rh.Host, auth, c.agent(ctx))
	return []docker.RegistryHost{rh}, nil
}

// registryHost says how a registry is reached.
func (c *Client) registryHost(ctx context.Context, host string) (docker.RegistryHost, error) {
	rh := docker.RegistryHost{
		Client:       c.secure,
		Host:         host,
		Scheme:       "https",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
	if host == "docker.io" {
		rh.Host = "registry-1.docker.io"
	}
	if c.Insecure(host) {
		rh.Client = c.insecure
		plain, err := c.plainHTTP(ctx, host)
		if err != nil {
			return rh, err
		}
		if plain {
			rh.Scheme = "http"
		}
	}
	return rh, nil
}

// plainHTTP finds out whether a host answers TLS with plain HTTP.
func (c *Client) plainHTTP(ctx context.Context, host string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v2/", nil)
	if err != nil {
		return false, say(errdefs.ErrInvalidArgument, "registry %q: %w", host, err)
	}
	req.Header.Set("User-Agent", c.agent(ctx))
	resp, err := c.insecure.Transport.(*transport).base.RoundTrip(req)
	if err == nil {
		return false, resp.Body.Close()
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response") {
		return true, nil
	}
	var op *net.OpError
	if ctx.Err() == nil && errors.As(err, &op) && op.Op == "dial" {
		return false, say(errdefs.ErrUnavailable, "cannot reach registry %s: %w", host, err)
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	// Some servers answer a TLS greeting by closing or by nothing at all; the
	// request that follows gives the error worth showing.
	return isReset(err), nil
}

// newAuthorizer returns an authorizer that gives auth to host and nobody else.
func newAuthorizer(client *http.Client, host string, auth Auth, agent string) docker.Authorizer {
	if auth.RegistryToken != "" {
		return bearer{host: host, token: auth.RegistryToken}
	}
	return docker.NewDockerAuthorizer(
		docker.WithAuthClient(client),
		docker.WithAuthHeader(http.Header{"User-Agent": {agent}}),
		docker.WithAuthCreds(func(asking string) (string, string, error) {
			switch {
			case asking != host:
				return "", "", nil
			case auth.IdentityToken != "":
				return "", auth.IdentityToken, nil
			}
			return auth.Username, auth.Password, nil
		}))
}

// bearer sends one token to one host.
type bearer struct{ host, token string }

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == b.host {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("registry token refused: %w", docker.ErrInvalidAuthorization)
}
