package dockerapi

import (
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"github.com/berthvm/berth/guest/engine/networks"
)

func (s *Server) networks() {
	for _, path := range []string{"/networks", "/networks/"} {
		s.handle("GET", path, func(c *call) error {
			f, err := c.filters()
			if err != nil {
				return err
			}
			list, err := s.cfg.Networks.List(c.Context(), f)
			if err != nil {
				return err
			}
			return c.reply(http.StatusOK, list)
		})
	}
	s.handle("GET", "/networks/{id...}", func(c *call) error {
		if v := c.query("verbose"); v != "" { // it shows services, which swarm has
			if _, err := strconv.ParseBool(v); err != nil {
				return invalid("invalid value for verbose: %s: %v", v, err)
			}
		}
		n, err := s.cfg.Networks.Inspect(c.Context(), c.vars["id"], networks.InspectOptions{Scope: c.query("scope"), Status: c.version >= 52})
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, n)
	})
	s.handle("POST", "/networks/create", func(c *call) error {
		var req network.CreateRequest
		if err := c.read(&req, false); err != nil {
			return err
		}
		if c.version < 48 {
			req.EnableIPv4 = nil
		}
		id, err := s.cfg.Networks.Create(c.Context(), req)
		if err != nil {
			return err
		}
		return c.reply(http.StatusCreated, network.CreateResponse{ID: id})
	})
	s.handle("POST", "/networks/prune", func(c *call) error {
		f, err := c.filters()
		if err != nil {
			return err
		}
		report, err := s.cfg.Networks.Prune(c.Context(), f)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, report)
	})
	s.handle("DELETE", "/networks/{id...}", func(c *call) error {
		if err := s.cfg.Networks.Remove(c.Context(), c.vars["id"]); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	})
	s.handle("POST", "/networks/{id...}/connect", func(c *call) error {
		var req network.ConnectRequest
		if err := c.read(&req, false); err != nil {
			return err
		}
		if c.version < 54 && req.EndpointConfig != nil {
			req.EndpointConfig.MacAddress = nil
		}
		if err := s.cfg.Engine.Connect(c.Context(), c.vars["id"], req.Container, req.EndpointConfig); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	})
	s.handle("POST", "/networks/{id...}/disconnect", func(c *call) error {
		var req network.DisconnectRequest
		if err := c.read(&req, false); err != nil {
			return err
		}
		if err := s.cfg.Engine.Disconnect(c.Context(), c.vars["id"], req.Container, req.Force); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	})
}

func (s *Server) volumes() {
	s.handle("GET", "/volumes", func(c *call) error {
		f, err := c.filters()
		if err != nil {
			return err
		}
		list, err := s.cfg.Volumes.List(c.Context(), f)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, volume.ListResponse{Volumes: list})
	})
	s.handle("POST", "/volumes/create", func(c *call) error {
		var req volume.CreateRequest
		if err := c.read(&req, false); err != nil {
			return err
		}
		if req.ClusterVolumeSpec != nil && c.version >= 42 {
			return errNoSwarm
		}
		v, err := s.cfg.Volumes.Create(c.Context(), req)
		if err != nil {
			return err
		}
		return c.reply(http.StatusCreated, v)
	})
	s.handle("POST", "/volumes/prune", func(c *call) error {
		f, err := c.filters()
		if err != nil {
			return err
		}
		if c.version < 42 { // anonymous volumes only came with 1.42
			if f == nil {
				f = map[string]map[string]bool{}
			}
			f.Add("all", "true")
		}
		report, err := s.cfg.Volumes.Prune(c.Context(), f)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, report)
	})
	s.handle("GET", "/volumes/{name...}", func(c *call) error {
		v, err := s.cfg.Volumes.Inspect(c.vars["name"])
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, v)
	})
	s.handle("DELETE", "/volumes/{name...}", func(c *call) error {
		if err := s.cfg.Volumes.Remove(c.Context(), c.vars["name"], c.flag("force")); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	})
}
