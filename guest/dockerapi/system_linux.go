package dockerapi

import (
	"encoding/json"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
	"github.com/berthvm/berth/guest/engine/journal"
	"github.com/berthvm/berth/guest/engine/runspec"
)

func (s *Server) system() {
	for _, method := range []string{"GET", "HEAD"} {
		s.handle(method, "/_ping", s.ping)
	}
	s.handle("GET", "/version", s.version)
	s.handle("GET", "/info", s.info)
	s.handle("GET", "/events", s.events)
	s.handle("GET", "/system/df", s.diskUsage)
	s.handle("POST", "/auth", func(c *call) error {
		var a registry.AuthConfig
		if err := c.read(&a, false); err != nil {
			return err
		}
		return s.login(c, a)
	})
}

func (s *Server) ping(c *call) error {
	h := c.w.Header()
	h.Set("Builder-Version", string(apibuild.BuilderBuildKit))
	h.Set("Swarm", "inactive")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return c.done(http.StatusOK)
	}
	_, _ = c.w.Write([]byte("OK"))
	return nil
}

func (s *Server) version(c *call) error {
	v := s.cfg.About
	v.APIVersion, v.MinAPIVersion = MaxVersion, MinVersion
	v.Os, v.Arch, v.GoVersion = "linux", runtime.GOARCH, runtime.Version()
	return c.reply(http.StatusOK, v)
}

// info is what docker info prints.
func (s *Server) info(c *call) error {
	i := s.cfg.Info
	n := s.cfg.Engine.Count()
	i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped = n.All, n.Running, n.Paused, n.Stopped
	i.Images = s.cfg.Images.Count(c.Context())
	i.NGoroutines, i.NEventsListener = runtime.NumGoroutine(), s.cfg.Engine.Journal.Subscribers()
	i.NFd = engine.OpenFiles()
	i.SystemTime = time.Now().Format(time.RFC3339Nano)
	i.NCPU, i.MemTotal = runtime.NumCPU(), engine.TotalMemory()
	names, warnings := runspec.VendorDevices(i.CDISpecDirs)
	i.DiscoveredDevices = []system.DeviceInfo{}
	for _, name := range names {
		i.DiscoveredDevices = append(i.DiscoveredDevices, system.DeviceInfo{Source: runspec.VendorDriver, ID: name})
	}
	i.Warnings = slices.Concat(i.Warnings, warnings)
	shaped, err := c.infoShape(i)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, shaped)
}

// infoShape is info as a version of the API has it.
func (c *call) infoShape(i system.Info) (any, error) {
	if c.version < 50 {
		i.DiscoveredDevices = nil
	}
	if c.version < 46 {
		i.Containerd = nil
	}
	if c.version >= 50 {
		return i, nil
	}
	out := map[string]any{"BridgeNfIptables": false, "BridgeNfIp6tables": false}
	if c.version < 49 {
		i.FirewallBackend = nil
	}
	m, err := fields(i)
	if err != nil {
		return nil, err
	}
	if c.version < 49 {
		for name, commit := range map[string]system.Commit{"ContainerdCommit": i.ContainerdCommit, "RuncCommit": i.RuncCommit, "InitCommit": i.InitCommit} {
			m[name] = map[string]any{"ID": commit.ID, "Expected": commit.ID}
		}
	}
	return add(m, out), nil
}

func (s *Server) events(c *call) error {
	f, err := c.filters() // docker, too, takes any name
	if err != nil {
		return err
	}
	since, err := c.moment("since")
	if err != nil {
		return err
	}
	until, err := c.moment("until")
	if err != nil {
		return err
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return invalid("`since` time (%s) cannot be after `until` time (%s)", c.query("since"), c.query("until"))
	}
	if since.IsZero() && !until.IsZero() {
		since = time.Unix(0, 0) // an end alone means all before it
	}
	past, sub, err := s.cfg.Engine.Journal.Subscribe(since)
	if err != nil {
		return err
	}
	defer sub.Close()
	kind, prefix := c.eventType(c.Header.Get("Accept"))
	c.w.Header().Set("Content-Type", kind)
	c.w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(c.w).Flush()
	send := func(m events.Message) bool {
		if !matchEvent(f, m) || !until.IsZero() && m.TimeNano > until.UnixNano() {
			return true
		}
		line, err := json.Marshal(c.eventShape(m))
		if err != nil {
			return true
		}
		_, err = flusher{c.w}.Write(slices.Concat([]byte(prefix), line, []byte("\n")))
		return err == nil
	}
	for _, m := range past {
		if !send(m) {
			return errBegun
		}
	}
	c.follow(sub, until, send)
	return errBegun
}

// follow sends new events until a moment, which may be none, or until nobody wants
// them.
func (c *call) follow(sub *journal.Subscription, until time.Time, send func(events.Message) bool) {
	var end <-chan time.Time
	switch {
	case until.IsZero():
	case !until.After(time.Now()):
		return
	default:
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case m, ok := <-sub.C:
			if !ok || !send(m) {
				return
			}
		case <-end:
			return
		case <-c.Context().Done():
			return
		}
	}
}

// eventType chooses among the forms of a stream of JSON.
func (c *call) eventType(accept string) (kind, prefix string) {
	for _, a := range strings.Split(accept, ",") {
		a, _, _ = strings.Cut(strings.TrimSpace(a), ";")
		switch a {
		case types.MediaTypeNDJSON, types.MediaTypeJSONLines:
			return a, ""
		case types.MediaTypeJSONSequence:
			return a, "\x1e"
		}
	}
	if c.version < 52 {
		return types.MediaTypeJSON, "" // which it is not, but was called
	}
	return types.MediaTypeJSONLines, ""
}

// eventShape adds the fields that clients before 1.52 read.
func (c *call) eventShape(m events.Message) any {
	if c.version >= 52 || m.Type != events.ContainerEventType && m.Type != events.ImageEventType {
		return m
	}
	from := m.Actor.Attributes["image"]
	return struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		events.Message
	}{string(m.Action), m.Actor.ID, from, m}
}

// matchEvent says whether an event is selected, as docker has it.
func matchEvent(f filter.Set, m events.Message) bool {
	action, _, _ := strings.Cut(string(m.Action), ":")
	if !f.Exact("event", string(m.Action)) && !f.Exact("event", action) || !f.Exact("type", string(m.Type)) ||
		!f.Exact("scope", m.Scope) || !f.Labels("label", m.Actor.Attributes) {
		return false
	}
	for _, kind := range []events.Type{"container", "network", "volume", "plugin", "daemon", "service", "node", "secret", "config"} {
		if !f.Has(string(kind)) {
			continue
		}
		name := m.Actor.Attributes["name"]
		if !f.Prefix(string(kind), m.Actor.ID) && !f.Prefix(string(kind), name) {
			return false
		}
	}
	if f.Has("image") {
		name := m.Actor.Attributes["image"]
		if m.Type == events.ImageEventType {
			name = m.Actor.Attributes["name"]
		}
		return f.Exact("image", name) || f.Exact("image", untagged(name)) || f.Exact("image", m.Actor.ID) || f.Exact("image", untagged(m.Actor.ID))
	}
	return true
}

// untagged is an image's name without its tag.
func untagged(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(named)
}

// login says what a registry thinks of a name and a password.
func (s *Server) login(c *call, a registry.AuthConfig) error {
	err := s.cfg.Images.Login(c.Context(), a.ServerAddress, authOf(a))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}
