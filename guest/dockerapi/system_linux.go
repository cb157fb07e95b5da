package dockerapi

import (
	"encoding/json"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	apibuild "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/filter"
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
	return c.reply(http.StatusOK, i)
}

// eventFilters are the names events takes.
var eventFilters = []string{"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
	"secret", "service", "type", "volume"}

func (s *Server) events(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := f.Check(eventFilters...); err != nil {
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
	past, sub, err := s.cfg.Engine.Journal.Subscribe(since)
	if err != nil {
		return err
	}
	defer sub.Close()
	kind, prefix := eventType(c.Header.Get("Accept"))
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
	var end <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case m, ok := <-sub.C:
			if !ok || !send(m) {
				return errBegun
			}
		case <-end:
			return errBegun
		case <-c.Context().Done():
			return errBegun
		}
	}
}

// eventType chooses among the forms of a stream of JSON.
func eventType(accept string) (kind, prefix string) {
	for _, a := range strings.Split(accept, ",") {
		a, _, _ = strings.Cut(strings.TrimSpace(a), ";")
		switch a {
		case types.MediaTypeNDJSON, types.MediaTypeJSONLines:
			return a, ""
		case types.MediaTypeJSONSequence:
			return a, "\x1e"
		}
	}
	return types.MediaTypeJSON, ""
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
		if m.Type != kind || !f.Prefix(string(kind), m.Actor.ID) && !f.Exact(string(kind), name) {
			return false
		}
	}
	if f.Has("image") {
		name := m.Actor.Attributes["image"]
		if m.Type == events.ImageEventType {
			name = m.Actor.Attributes["name"]
		}
		bare, _, _ := strings.Cut(name, ":")
		return f.Exact("image", name) || f.Exact("image", bare) || f.Exact("image", m.Actor.ID)
	}
	return true
}

// diskUsage is docker system df. Before 1.52 it had another shape.
func (s *Server) diskUsage(c *call) error {
	want := c.URL.Query()["type"]
	for _, t := range want {
		switch system.DiskUsageObject(t) {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
		default:
			return invalid("unknown object type: %s", t)
		}
	}
	has := func(t system.DiskUsageObject) bool { return len(want) == 0 || slices.Contains(want, string(t)) }
	verbose := c.version < 52 || c.flag("verbose")
	var u system.DiskUsage
	var err error
	if has(system.ImageObject) {
		if u.ImageUsage, err = s.cfg.Images.DiskUsage(c.Context(), verbose); err != nil {
			return err
		}
	}
	if has(system.ContainerObject) {
		if u.ContainerUsage, err = s.containerUsage(c, verbose); err != nil {
			return err
		}
	}
	if has(system.VolumeObject) {
		if u.VolumeUsage, err = s.cfg.Volumes.DiskUsage(c.Context()); err != nil {
			return err
		}
	}
	if has(system.BuildCacheObject) {
		if u.BuildCacheUsage, err = s.cfg.Builds.DiskUsage(c.Context(), verbose); err != nil {
			return err
		}
	}
	if c.version >= 52 {
		return c.reply(http.StatusOK, u)
	}
	old := map[string]any{"LayersSize": 0, "Images": []any{}, "Containers": []any{}, "Volumes": []any{}, "BuildCache": []any{}}
	if u.ImageUsage != nil {
		old["LayersSize"], old["Images"] = u.ImageUsage.TotalSize, u.ImageUsage.Items
	}
	if u.ContainerUsage != nil {
		old["Containers"] = u.ContainerUsage.Items
	}
	if u.VolumeUsage != nil {
		old["Volumes"] = u.VolumeUsage.Items
	}
	if u.BuildCacheUsage != nil && u.BuildCacheUsage.Items != nil {
		old["BuildCache"] = u.BuildCacheUsage.Items
	}
	return c.reply(http.StatusOK, old)
}

func (s *Server) containerUsage(c *call, verbose bool) (*apicontainer.DiskUsage, error) {
	list, err := s.cfg.Engine.List(c.Context(), engine.ListOptions{All: true, Size: true})
	if err != nil {
		return nil, err
	}
	u := &apicontainer.DiskUsage{TotalCount: int64(len(list))}
	for _, item := range list {
		u.TotalSize += item.SizeRw
		switch item.State {
		case apicontainer.StateRunning, apicontainer.StatePaused, apicontainer.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += item.SizeRw
		}
	}
	if verbose {
		u.Items = list
	}
	return u, nil
}

// login says what a registry thinks of a name and a password.
func (s *Server) login(c *call, a registry.AuthConfig) error {
	err := s.cfg.Images.Login(c.Context(), a.ServerAddress, authOf(a))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}
