package dockerapi

import (
	"cmp"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"path"
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

// handle registers a handler for a method and a path. A variable at the path's end
// may be empty: what lacks a name is the handler's to say.
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
			if segments[i] == "" && i < len(r.pattern)-1 {
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

// negotiate takes the version off a path: digits and dots behind "/v". It is empty
// when the path has none.
func negotiate(path string) (rest, name string) {
	after, versioned := strings.CutPrefix(path, "/v")
	name, rest, more := strings.Cut(after, "/")
	if !versioned || !more || name == "" || strings.Trim(name, "0123456789.") != "" {
		return path, ""
	}
	return "/" + rest, name
}

// served returns the version that a client asks for, if it is served.
func served(name string) (version, error) {
	if name == "" {
		name = MaxVersion
	}
	switch {
	case compareVersions(name, MinVersion) < 0:
		return 0, invalid("client version %s is too old. Minimum supported API version is %s, "+
			"please upgrade your client to a newer version", name, MinVersion)
	case compareVersions(name, MaxVersion) > 0:
		return 0, invalid("client version %s is too new. Maximum supported API version is %s", name, MaxVersion)
	}
	minor, _ := strconv.Atoi(strings.SplitN(name, ".", 3)[1])
	return version(minor), nil
}

// compareVersions compares dotted numbers. What is missing or no number is 0.
func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var n, m int
		if i < len(as) {
			n, _ = strconv.Atoi(as[i])
		}
		if i < len(bs) {
			m, _ = strconv.Atoi(bs[i])
		}
		if n != m {
			return cmp.Compare(n, m)
		}
	}
	return 0
}

// plainBefore is the first version whose clients understand errors as JSON.
const plainBefore = "1.24"

// clean is a path without empty segments and dots. A slash at its end stays.
func clean(p string) string {
	cleaned := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && cleaned != "/" {
		cleaned += "/"
	}
	return cleaned
}

// find returns what handles a request, and its variables; nil when nothing does.
func (s *Server) find(method, path string) (handler, map[string]string) {
	if method == http.MethodOptions {
		return func(c *call) error { return c.done(http.StatusOK) }, nil
	}
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for _, route := range s.routes[method] {
		if vars := route.match(segments); vars != nil {
			return route.handle, vars
		}
	}
	return nil, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "Berth/"+s.cfg.Version+" (linux)")
	h.Set("Api-Version", MaxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	c := &call{Request: r.WithContext(images.OnBehalf(r.Context(), r.UserAgent())), s: s, w: w}
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
	if p := clean(r.URL.Path); p != r.URL.Path {
		to := *r.URL
		to.Path, to.RawPath = p, ""
		h.Set("Location", to.String())
		w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	rest, name := negotiate(r.URL.Path)
	handle, vars := s.find(r.Method, rest)
	if handle == nil {
		writeError(w, errNoPage)
		return
	}
	var err error
	if c.version, err = served(name); err == nil {
		if _, qerr := url.ParseQuery(r.URL.RawQuery); qerr != nil {
			err = invalid("%v", qerr)
		}
	}
	switch {
	case err != nil && name != "" && compareVersions(name, plainBefore) < 0:
		http.Error(w, err.Error(), status(err))
		return
	case err != nil:
		writeError(w, err)
		return
	}
	c.vars = vars
	if about, ok := strings.CutPrefix(rest, "/containers/"); ok && about != "create" {
		s.cfg.Engine.Settle(c.Context(), vars["id"])
	}
	if err := handle(c); err != nil {
		s.failed(c, err)
	}
}

func (s *Server) failed(c *call, err error) {
	code := writeError(c.w, err)
	if code >= 500 {
		s.log.Warn("request failed", "method", c.Method, "path", c.URL.Path, "status", code, "error", err)
	}
}

// bodyTime bounds how long a request's JSON may take to arrive.
const bodyTime = 30 * time.Second
