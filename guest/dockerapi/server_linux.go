package dockerapi

import (
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/builds"
	"github.com/berthvm/berth/guest/engine/images"
	"github.com/berthvm/berth/guest/engine/networks"
	"github.com/berthvm/berth/guest/engine/volumes"
)

// The versions of the API that are served.
const (
	MinVersion = "1.40"
	MaxVersion = "1.56"
)

// Config is what a Server serves.
type Config struct {
	Log      *slog.Logger
	Engine   *engine.Engine
	Images   *images.Service
	Networks *networks.Service
	Volumes  *volumes.Service
	Builds   *builds.Service
	Version  string                 // of Berth
	About    system.VersionResponse // what /version says beyond what is known here
	Info     system.Info            // likewise, of /info
}

// Server is the API's handler. It is safe for concurrent use.
type Server struct {
	cfg    Config
	log    *slog.Logger
	routes map[string][]route // by method
}

// call is one request on its way through a handler.
type call struct {
	*http.Request
	s       *Server
	w       http.ResponseWriter
	version version
	vars    map[string]string
}

type handler func(*call) error

type route struct {
	pattern []string // segments; "{x}" is any one, "{x...}" one or more
	handle  handler
}

// New returns a server of c.
func New(c Config) *Server {
	s := &Server{cfg: c, log: c.Log, routes: map[string][]route{}}
	s.system()
	s.containers()
	s.execs()
	s.files()
	s.images()
	s.networks()
	s.volumes()
	s.builds()
	s.absent()
	return s
}

// handle registers a handler for a method and a path.
func (s *Server) handle(method, path string, h handler) {
	s.routes[method] = append(s.routes[method], route{strings.Split(path[1:], "/"), h})
}

// match returns a path's variables, or nil when the pattern does not fit.
func (r route) match(segments []string) map[string]string {
	vars := map[string]string{}
	for i, p := range r.pattern {
		name, many := strings.CutSuffix(strings.TrimPrefix(p, "{"), "...}")
		switch {
		case many: // the segments that the rest of the pattern leaves
			rest := len(r.pattern) - i - 1
			end := len(segments) - rest
			if end <= i {
				return nil
			}
			vars[name] = strings.Join(segments[i:end], "/")
			tail := route{pattern: r.pattern[i+1:]}.match(segments[end:])
			if tail == nil {
				return nil
			}
			for k, v := range tail {
				vars[k] = v
			}
			return vars
		case i >= len(segments):
			return nil
		case strings.HasPrefix(p, "{"):
			if segments[i] == "" {
				return nil
			}
			vars[strings.Trim(p, "{}")] = segments[i]
		case p != segments[i]:
			return nil
		}
	}
	if len(segments) != len(r.pattern) {
		return nil
	}
	return vars
}

// version is a version of the API: 1.<minor>.
type version int

func (v version) String() string { return "1." + strconv.Itoa(int(v)) }

func parseVersion(s string) (version, bool) {
	minor, ok := strings.CutPrefix(s, "1.")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(minor)
	return version(n), err == nil && n >= 0
}

// negotiate takes the version off a path.
func negotiate(path string) (rest string, v version, err error) {
	newest, _ := parseVersion(MaxVersion)
	oldest, _ := parseVersion(MinVersion)
	after, versioned := strings.CutPrefix(path, "/v")
	if !versioned {
		return path, newest, nil
	}
	name, rest, _ := strings.Cut(after, "/")
	v, ok := parseVersion(name)
	switch {
	case !ok:
		return path, newest, nil // a path like any other, such as /version
	case v < oldest:
		return "", 0, invalid("client version %s is too old. Minimum supported API version is %s, "+
			"please upgrade your client to a newer version", name, MinVersion)
	case v > newest:
		return "", 0, invalid("client version %s is too new. Maximum supported API version is %s", name, MaxVersion)
	}
	return "/" + rest, v, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "Berth/"+s.cfg.Version+" (linux)")
	h.Set("Api-Version", MaxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	c := &call{Request: r, s: s, w: w}
	defer func() {
		p := recover()
		switch {
		case p == http.ErrAbortHandler:
			panic(p) // net/http cuts the connection
		case p != nil:
			s.log.Error("a request failed badly", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			writeError(w, errors.New("internal error"))
		}
	}()
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.cfg.Builds.ServeHTTP(w, r)
		return
	}
	path, v, err := negotiate(r.URL.Path)
	if err != nil {
		writeError(w, err)
		return
	}
	c.version = v
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for _, route := range s.routes[r.Method] {
		if vars := route.match(segments); vars != nil {
			c.vars = vars
			if err := route.handle(c); err != nil {
				s.failed(c, err)
			}
			return
		}
	}
	writeError(w, errNoPage)
}

func (s *Server) failed(c *call, err error) {
	code := writeError(c.w, err)
	if code >= 500 {
		s.log.Warn("request failed", "method", c.Method, "path", c.URL.Path, "status", code, "error", err)
	}
}

// bodyTime bounds how long a request's JSON may take to arrive.
const bodyTime = 30 * time.Second
