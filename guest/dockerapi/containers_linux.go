package dockerapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"

	"github.com/berthvm/berth/guest/engine"
	"github.com/berthvm/berth/guest/engine/logfile"
	"github.com/berthvm/berth/guest/engine/stdio"
)

func (s *Server) containers() {
	e := s.cfg.Engine
	s.handle("GET", "/containers/json", s.containerList)
	s.handle("POST", "/containers/create", s.containerCreate)
	s.handle("POST", "/containers/prune", s.containerPrune)
	s.handle("GET", "/containers/{id...}/json", s.containerInspect)
	s.handle("GET", "/containers/{id...}/top", s.containerTop)
	s.handle("GET", "/containers/{id...}/logs", s.containerLogs)
	s.handle("GET", "/containers/{id...}/stats", s.containerStats)
	s.handle("POST", "/containers/{id...}/attach", s.containerAttach)
	s.handle("GET", "/containers/{id...}/attach/ws", s.containerAttachWS)
	s.handle("POST", "/containers/{id...}/wait", s.containerWait)
	s.handle("POST", "/containers/{id...}/update", s.containerUpdate)
	s.handle("DELETE", "/containers/{id...}", s.containerRemove)
	s.handle("POST", "/containers/{id...}/start", func(c *call) error {
		switch {
		case c.ContentLength > 7 || c.ContentLength == -1: // as old clients sent a HostConfig
			return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
		case c.query("checkpoint") != "":
			return engine.NoCheckpoint(c.query("checkpoint"))
		}
		if err := e.Start(c.Context(), c.vars["id"]); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	})
	s.handle("POST", "/containers/{id...}/stop", stopping(e.Stop))
	s.handle("POST", "/containers/{id...}/restart", stopping(e.Restart))
	s.handle("POST", "/containers/{id...}/kill", func(c *call) error {
		if err := e.Kill(c.Context(), c.vars["id"], c.query("signal")); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	})
	s.handle("POST", "/containers/{id...}/rename", func(c *call) error {
		if err := e.Rename(c.Context(), c.vars["id"], c.query("name")); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	})
	for name, f := range map[string]func(context.Context, string) error{"pause": e.Pause, "unpause": e.Unpause} {
		s.handle("POST", "/containers/{id...}/"+name, func(c *call) error {
			if err := f(c.Context(), c.vars["id"]); err != nil {
				return err
			}
			return c.done(http.StatusNoContent)
		})
	}
	s.handle("POST", "/containers/{id...}/resize", func(c *call) error {
		h, w, err := c.size()
		if err != nil {
			return err
		}
		if err := e.Resize(c.Context(), c.vars["id"], h, w); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	})
}

// stopping is the handler of stop and restart.
func stopping(f func(context.Context, string, engine.StopOptions) error) handler {
	return func(c *call) error {
		var o engine.StopOptions
		if c.version >= 42 {
			o.Signal = c.query("signal")
		}
		if v := c.query("t"); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil {
				return invalid("invalid value for t: %q is not a number", v)
			}
			o.Timeout = &n
		}
		if err := f(c.Context(), c.vars["id"], o); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	}
}

func (s *Server) containerList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	limit, err := c.number("limit")
	if err != nil {
		return err
	}
	list, err := s.cfg.Engine.List(c.Context(), engine.ListOptions{All: c.flag("all"), Limit: limit, Size: c.flag("size"), Filters: f})
	if err != nil {
		return err
	}
	for i := range list {
		if c.version < 46 {
			list[i].HostConfig.Annotations = nil
		}
		if c.version < 48 {
			list[i].ImageManifestDescriptor = nil
		}
		if c.version < 52 {
			list[i].Health = nil
		}
	}
	return c.reply(http.StatusOK, list)
}

func (s *Server) containerInspect(c *call) error {
	info, err := s.cfg.Engine.Inspect(c.Context(), c.vars["id"], c.flag("size"))
	if err != nil {
		return err
	}
	if c.version < 48 {
		info.ImageManifestDescriptor = nil
	}
	if c.version < 45 {
		for name, ep := range info.NetworkSettings.Networks {
			if apicontainer.NetworkMode(name).IsUserDefined() {
				ep.Aliases = withAliases(ep.Aliases, info.ID[:12], info.Config.Hostname)
			}
		}
	}
	if c.version >= 52 {
		return c.reply(http.StatusOK, info)
	}
	old, err := legacyInspect(info)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, old)
}

// withAliases adds the names that a network's inspect had among the aliases.
func withAliases(aliases []string, names ...string) []string {
	for _, n := range names {
		if n != "" && !slices.Contains(aliases, n) {
			aliases = append(aliases[:len(aliases):len(aliases)], n)
		}
	}
	return aliases
}

// legacyInspect brings an inspect into the shape before 1.52, which repeated the
// address on the default bridge beside the networks.
func legacyInspect(info *apicontainer.InspectResponse) (map[string]any, error) {
	body, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, err
	}
	delete(out, "Storage")
	out["GraphDriver"] = map[string]any{"Name": "overlayfs", "Data": nil}
	if mac := info.NetworkSettings.Networks[info.HostConfig.NetworkMode.NetworkName()]; mac != nil && len(mac.MacAddress) > 0 {
		if config, ok := out["Config"].(map[string]any); ok {
			config["MacAddress"] = mac.MacAddress.String()
		}
	}
	settings, _ := out["NetworkSettings"].(map[string]any)
	if settings == nil {
		return out, nil
	}
	for k, v := range map[string]any{"Bridge": "", "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
		"SecondaryIPAddresses": nil, "SecondaryIPv6Addresses": nil, "EndpointID": "", "Gateway": "", "GlobalIPv6Address": "",
		"GlobalIPv6PrefixLen": 0, "IPAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "", "MacAddress": ""} {
		settings[k] = v
	}
	nets, _ := settings["Networks"].(map[string]any)
	bridge, _ := nets["bridge"].(map[string]any)
	for _, k := range []string{"EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen",
		"IPv6Gateway", "MacAddress"} {
		if v, ok := bridge[k]; ok {
			settings[k] = v
		}
	}
	return out, nil
}

func (s *Server) containerTop(c *call) error {
	args := "-ef"
	if c.URL.Query().Has("ps_args") {
		args = c.query("ps_args")
	}
	top, err := s.cfg.Engine.Top(c.Context(), c.vars["id"], args)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, top)
}

func (s *Server) containerLogs(c *call) error {
	stdout, stderr := c.flag("stdout"), c.flag("stderr")
	if !stdout && !stderr {
		return invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	o := logfile.ReadOptions{Follow: c.flag("follow"), Tail: -1}
	if n, err := strconv.Atoi(c.query("tail")); err == nil {
		o.Tail = n
	}
	var err error
	if o.Since, err = c.moment("since"); err != nil {
		return err
	}
	if o.Until, err = c.moment("until"); err != nil {
		return err
	}
	var out func(stdio.Stream, []byte) error
	begun, times, details := false, c.flag("timestamps"), c.flag("details")
	err = s.cfg.Engine.Logs(c.Context(), c.vars["id"], o, func(tty bool) error {
		c.w.Header().Set("Content-Type", c.streamType(tty))
		c.w.WriteHeader(http.StatusOK)
		begun = true
		out = output(flusher{c.w}, tty)
		return http.NewResponseController(c.w).Flush()
	}, func(entry logfile.Entry) error {
		stream := stdio.Stdout
		if entry.Stream == "stderr" {
			stream = stdio.Stderr
		}
		if stream == stdio.Stdout && !stdout || stream == stdio.Stderr && !stderr {
			return nil
		}
		return out(stream, logLine(entry, times, details))
	})
	if err != nil && begun {
		return errBegun
	}
	return err
}

// logLine puts before a line what was asked for.
func logLine(entry logfile.Entry, times, details bool) []byte {
	if !times && !details {
		return entry.Line
	}
	var b []byte
	if times {
		b = entry.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
		b = append(b, ' ')
	}
	if details {
		var pairs []string
		for k, v := range entry.Attrs {
			pairs = append(pairs, k+"="+v)
		}
		slices.Sort(pairs)
		b = append(append(b, strings.Join(pairs, ",")...), ' ')
	}
	return append(b, entry.Line...)
}

func (s *Server) containerStats(c *call) error {
	begun := false
	enc := json.NewEncoder(flusher{c.w})
	enc.SetEscapeHTML(false)
	err := s.cfg.Engine.Stats(c.Context(), c.vars["id"], c.flagOr("stream", true), c.version >= 41 && c.flag("one-shot"),
		func(st *apicontainer.StatsResponse) error {
			if !begun {
				c.w.Header().Set("Content-Type", "application/json")
				c.w.WriteHeader(http.StatusOK)
				begun = true
			}
			return enc.Encode(st)
		})
	if err != nil && begun {
		return errBegun
	}
	return err
}

func (s *Server) containerWait(c *call) error {
	result, err := s.cfg.Engine.Wait(c.Context(), c.vars["id"], apicontainer.WaitCondition(c.query("condition")))
	if err != nil {
		return err
	}
	// The client must know that the waiting has begun before it starts the
	// container.
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(c.w).Flush()
	select {
	case r := <-result:
		return json.NewEncoder(c.w).Encode(apicontainer.WaitResponse{StatusCode: int64(r.Code)})
	case <-c.Context().Done():
		return errBegun
	}
}

func (s *Server) containerUpdate(c *call) error {
	var u apicontainer.UpdateConfig
	if err := c.read(&u, false); err != nil {
		return err
	}
	if c.version < 55 {
		u.BlkioWeightDevice, u.BlkioDeviceReadBps, u.BlkioDeviceWriteBps = nil, nil, nil
		u.BlkioDeviceReadIOps, u.BlkioDeviceWriteIOps = nil, nil
	}
	if u.PidsLimit != nil && *u.PidsLimit <= 0 {
		u.PidsLimit = new(int64) // no limit
	}
	warnings, err := s.cfg.Engine.Update(c.Context(), c.vars["id"], u)
	if err != nil {
		return err
	}
	if warnings == nil {
		warnings = []string{}
	}
	return c.reply(http.StatusOK, apicontainer.UpdateResponse{Warnings: warnings})
}

func (s *Server) containerRemove(c *call) error {
	if c.flag("link") {
		if err := s.cfg.Engine.RemoveLink(c.Context(), c.vars["id"]); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	}
	err := s.cfg.Engine.Remove(c.Context(), c.vars["id"], engine.RemoveOptions{Force: c.flag("force"), Volumes: c.flag("v")})
	if err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerPrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := f.Check("label", "label!", "until"); err != nil {
		return err
	}
	until, err := f.Until(time.Now())
	if err != nil {
		return err
	}
	ids, freed, err := s.cfg.Engine.Prune(c.Context(), engine.Matches(f, until))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, apicontainer.PruneReport{ContainersDeleted: ids, SpaceReclaimed: uint64(max(0, freed))})
}
