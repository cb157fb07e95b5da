package dockerapi

import (
	"net/http"

	"github.com/containerd/errdefs"
)

// errNoSwarm is what an engine that is in no swarm says.
var errNoSwarm = errdefs.ErrUnavailable.WithMessage(
	`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)

// absent registers what Berth does not have: swarm and managed plugins.
func (s *Server) absent() {
	noSwarm := func(*call) error { return errNoSwarm }
	for _, method := range []string{"GET", "POST", "DELETE", "PUT"} {
		for _, kind := range []string{"swarm", "nodes", "services", "tasks", "secrets", "configs"} {
			s.handle(method, "/"+kind, noSwarm)
			s.handle(method, "/"+kind+"/{rest...}", noSwarm)
		}
	}
	s.handle("PUT", "/volumes/{name}", func(*call) error {
		return errdefs.ErrUnavailable.WithMessage("volume update only valid for cluster volumes, but swarm is unavailable")
	})
	s.handle("GET", "/plugins", func(c *call) error { return c.reply(http.StatusOK, []struct{}{}) })
	s.handle("GET", "/plugins/{name...}/json", func(c *call) error {
		return errdefs.ErrNotFound.WithMessage("plugin \"" + c.vars["name"] + "\" not found")
	})
	noPlugins := func(*call) error { return errdefs.ErrNotImplemented.WithMessage("managed plugins are not supported") }
	for _, method := range []string{"GET", "POST", "DELETE"} {
		s.handle(method, "/plugins/{rest...}", noPlugins)
	}
}
