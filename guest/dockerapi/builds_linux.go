package dockerapi

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/registry"

	"github.com/berthvm/berth/guest/engine/builds"
)

func (s *Server) builds() {
	s.handle("POST", "/build", s.build)
	s.handle("POST", "/build/prune", s.buildPrune)
	s.handle("POST", "/build/cancel", func(c *call) error {
		id := c.query("id")
		if id == "" {
			return invalid("build ID not provided")
		}
		s.cfg.Builds.Cancel(id)
		return c.done(http.StatusOK)
	})
	s.handle("POST", "/session", s.session)
	s.handle("POST", "/grpc", s.grpc)
}

// upgradesTo checks that the client wants to go on with a protocol.
func (c *call) upgradesTo(protocol string) error {
	switch up := c.Header.Get("Upgrade"); up {
	case protocol:
		return nil
	case "":
		return invalid("no upgrade proto in request")
	default:
		return invalid("protocol %s not supported", up)
	}
}

func (s *Server) session(c *call) error {
	if err := c.upgradesTo("h2c"); err != nil {
		return err
	}
	w := &takeable{ResponseWriter: c.w}
	err := s.cfg.Builds.Session(c.Context(), w, c.Request)
	switch {
	case w.taken:
		return errBegun
	case err != nil && !errdefs.IsUnavailable(err):
		return invalid("%v", err)
	}
	return err
}

// takeable notes that its connection was taken from HTTP: there is no answering
// any more.
type takeable struct {
	http.ResponseWriter
	taken bool
}

func (t *takeable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(t.ResponseWriter).Hijack()
	t.taken = err == nil
	return conn, rw, err
}

// grpc hands a connection to BuildKit's own API.
func (s *Server) grpc(c *call) error {
	if err := c.upgradesTo("h2c"); err != nil {
		return err
	}
	conn, rw, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		conn.Close()
		return errBegun
	}
	early := make([]byte, rw.Reader.Buffered())
	if _, err := io.ReadFull(rw.Reader, early); err != nil {
		conn.Close()
		return errBegun
	}
	if err := s.cfg.Builds.ServeConn(&hijacked{Conn: conn, early: early, gone: func() {}}); err != nil {
		s.log.Warn("cannot serve a build", "error", err)
	}
	return nil
}

// build is docker build for clients that do not speak BuildKit's own API.
func (s *Server) build(c *call) error {
	id := c.query("buildid")
	if upload, ok := strings.CutPrefix(id, "upload-request:"); ok {
		if err := s.cfg.Builds.Upload(c.Context(), upload, c.Body); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	}
	r, err := c.buildRequest()
	if err != nil {
		return err
	}
	// The answer begins while the context is still being read.
	_ = http.NewResponseController(c.w).EnableFullDuplex()
	p := &progress{c: c}
	var out builds.Output = &builds.Classic{Report: p.report, Quiet: c.flag("q"), NoCache: r.NoCache}
	if !r.Classic {
		out = builds.Trace(p.report)
	}
	uploaded := c.query("remote") == "upload-request"
	return p.end(s.cfg.Builds.Build(c.Context(), id, uploaded, r, out))
}

// buildRequest reads what is to be built.
func (c *call) buildRequest() (builds.Request, error) {
	q := c.URL.Query()
	r := builds.Request{
		Session: c.query("session"), Remote: c.query("remote"), Dockerfile: c.query("dockerfile"), Target: c.query("target"),
		Network: c.query("networkmode"), ExtraHosts: q["extrahosts"], CgroupPath: c.query("cgroupparent"),
		NoCache: c.flag("nocache"), Pull: c.flag("pull"), Classic: c.query("version") != "2",
	}
	switch r.Remote {
	case "client-session", "upload-request":
		r.Remote = ""
	case "":
		r.Context = c.Body
	}
	if !r.Classic && c.query("session") != "" && c.query("remote") == "client-session" {
		r.Context = nil
	}
	for _, t := range q["t"] {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return r, invalid("invalid reference format")
		}
		if _, ok := named.(reference.Canonical); ok {
			return r, invalid("build tag cannot contain a digest")
		}
		r.Tags = append(r.Tags, reference.TagNameOnly(named).String())
	}
	if p := c.query("platform"); p != "" {
		for one := range strings.SplitSeq(p, ",") {
			if _, err := platforms.Parse(one); err != nil {
				return r, invalid("%v", err)
			}
		}
		r.Platforms = p
	}
	if v := c.query("shmsize"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return r, invalid("invalid value for shmsize: %q is not a number", v)
		}
		r.ShmSize = n
	}
	if c.flag("squash") {
		return r, invalid("squash is only supported with experimental mode")
	}
	r.Limits = c.buildLimits()
	if err := c.buildJSON(&r); err != nil {
		return r, err
	}
	if r.Session == "" {
		r.Credentials = c.registryConfig()
	}
	return r, nil
}

// buildLimits reads the limits of a build's steps. A number that is none counts as zero,
// as docker has it.
func (c *call) buildLimits() builds.Limits {
	l := builds.Limits{CPUs: c.query("cpusetcpus"), MemoryNodes: c.query("cpusetmems")}
	for name, to := range map[string]*int64{
		"memory": &l.Memory, "memswap": &l.MemorySwap, "cpushares": &l.CPUShares, "cpuperiod": &l.CPUPeriod, "cpuquota": &l.CPUQuota,
	} {
		if n, err := strconv.ParseInt(c.query(name), 10, 64); err == nil {
			*to = n
		}
	}
	return l
}

// buildJSON reads the parameters that are JSON.
func (c *call) buildJSON(r *builds.Request) error {
	var args map[string]*string
	var ulimits []*units.Ulimit
	for _, p := range []struct {
		name string
		to   any
	}{
		{"buildargs", &args}, {"labels", &r.Labels}, {"cachefrom", &r.CacheFrom}, {"ulimits", &ulimits}, {"outputs", &r.Outputs},
	} {
		if v := c.query(p.name); v != "" {
			if err := json.Unmarshal([]byte(v), p.to); err != nil {
				return invalid("error reading %s: %v", p.name, err)
			}
		}
	}
	for k, v := range args {
		if v == nil {
			continue // no value: what the Dockerfile says
		}
		if r.Args == nil {
			r.Args = map[string]string{}
		}
		r.Args[k] = *v
	}
	for _, u := range ulimits {
		if u != nil {
			r.Ulimits = append(r.Ulimits, u.String())
		}
	}
	return nil
}

// registryConfig returns what the client's credentials answer. A malformed header
// counts as none, as docker has it.
func (c *call) registryConfig() func(host string) (user, secret string) {
	raw, err := base64.URLEncoding.DecodeString(c.Header.Get("X-Registry-Config"))
	if err != nil {
		return nil
	}
	var all map[string]registry.AuthConfig
	if json.NewDecoder(bytes.NewReader(raw)).Decode(&all) != nil {
		return nil
	}
	return func(host string) (string, string) {
		names := []string{host, "https://" + host, "http://" + host}
		if host == "registry-1.docker.io" || host == "docker.io" {
			names = append(names, "https://index.docker.io/v1/", "docker.io", "index.docker.io")
		}
		for _, n := range names {
			if a, ok := all[n]; ok {
				auth := authOf(a)
				if auth.IdentityToken != "" {
					return "", auth.IdentityToken
				}
				return auth.Username, auth.Password
			}
		}
		return "", ""
	}
}

// buildPrune is docker builder prune.
func (s *Server) buildPrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	o := builds.PruneOptions{All: c.flag("all"), Filters: f}
	for _, p := range []struct {
		name string
		to   *int64
	}{
		{"keep-storage", &o.Reserved}, {"reserved-space", &o.Reserved}, {"max-used-space", &o.MaxUsed}, {"min-free-space", &o.MinFree},
	} {
		v := c.query(p.name)
		if v == "" {
			continue
		}
		if *p.to, err = strconv.ParseInt(v, 10, 64); err != nil {
			return invalid("%s is in bytes and expects an integer, got %v", p.name, v)
		}
	}
	report, err := s.cfg.Builds.Prune(c.Context(), o)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, report)
}
