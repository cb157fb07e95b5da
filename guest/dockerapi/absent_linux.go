package dockerapi

import (
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/swarm"
)

// What an engine that is in no swarm says.
var (
	errNoSwarm = errdefs.ErrUnavailable.WithMessage(
		`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	errNotInSwarm   = errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm")
	errNeverSwarm   = errdefs.ErrUnavailable.WithMessage("Berth is no node of a swarm: swarm mode is not supported")
	errNoPlugins    = errdefs.ErrNotImplemented.WithMessage("managed plugins are not supported")
	errNoExperiment = errdefs.ErrNotImplemented.WithMessage(
		"This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.")
)

// absent registers what Berth does not have: swarm, managed plugins and
// checkpoints. A request that is wrong is told so first, as by an engine that has
// them.
func (s *Server) absent() {
	refuse := func(method, path string, err error, checks ...func(*call) error) {
		s.handle(method, path, func(c *call) error {
			for _, check := range checks {
				if err := check(c); err != nil {
					return err
				}
			}
			return err
		})
	}
	refuse("POST", "/swarm/init", errNeverSwarm, takes[swarm.InitRequest])
	refuse("POST", "/swarm/join", errNeverSwarm, takes[swarm.JoinRequest])
	refuse("POST", "/swarm/leave", errNotInSwarm)
	refuse("POST", "/swarm/update", errNoSwarm, takes[swarm.Spec], ofVersion("swarm"),
		isBool("rotateWorkerToken"), isBool("rotateManagerToken"), isBool("rotateManagerUnlockKey"))
	refuse("POST", "/swarm/unlock", errNoSwarm, takes[swarm.UnlockRequest])
	refuse("GET", "/swarm", errNoSwarm)
	refuse("GET", "/swarm/unlockkey", errNoSwarm)
	refuse("POST", "/services/create", errNoSwarm, takes[swarm.ServiceSpec])
	refuse("POST", "/services/{id}/update", errNoSwarm, takes[swarm.ServiceSpec], ofVersion("service"))
	refuse("POST", "/nodes/{id}/update", errNoSwarm, takes[swarm.NodeSpec], ofVersion("node"))
	refuse("POST", "/secrets/create", errNoSwarm, takes[swarm.SecretSpec])
	refuse("POST", "/secrets/{id}/update", errNoSwarm, takes[swarm.SecretSpec], ofVersion("secret"))
	refuse("POST", "/configs/create", errNoSwarm, takes[swarm.ConfigSpec])
	refuse("POST", "/configs/{id}/update", errNoSwarm, takes[swarm.ConfigSpec], ofVersion("config"))
	for _, kind := range []string{"nodes", "services", "tasks", "secrets", "configs"} {
		refuse("GET", "/"+kind, errNoSwarm, hasFilters, isBool("status"))
		refuse("GET", "/"+kind+"/{id}", errNoSwarm, named, isBool("insertDefaults"))
		if kind != "tasks" {
			refuse("DELETE", "/"+kind+"/{id}", errNoSwarm, named)
		}
	}
	for _, kind := range []string{"services", "tasks"} {
		refuse("GET", "/"+kind+"/{id}/logs", errNoSwarm, hasStreams)
	}
	refuse("PUT", "/volumes/{name...}", errdefs.ErrUnavailable.WithMessage(
		"volume update only valid for cluster volumes, but swarm is unavailable"), since(42))

	s.handle("GET", "/plugins", func(c *call) error {
		f, err := c.filters()
		if err == nil {
			err = f.Check("enabled", "capability")
		}
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, []struct{}{})
	})
	refuse("GET", "/plugins/privileges", errNoPlugins, hasRemote)
	refuse("POST", "/plugins/pull", errNoPlugins, takes[plugin.Privileges], hasRemote)
	refuse("POST", "/plugins/create", errNoPlugins)
	refuse("GET", "/plugins/{name...}/json", nil, noPlugin)
	refuse("POST", "/plugins/{name...}/enable", nil, isNumber("timeout"), noPlugin)
	refuse("POST", "/plugins/{name...}/upgrade", nil, takes[plugin.Privileges], hasRemote, noPlugin)
	refuse("POST", "/plugins/{name...}/set", nil, takes[[]string], noPlugin)
	refuse("POST", "/plugins/{name...}/disable", nil, noPlugin)
	refuse("POST", "/plugins/{name...}/push", nil, noPlugin)
	refuse("DELETE", "/plugins/{name...}", nil, noPlugin)

	refuse("GET", "/containers/{id...}/checkpoints", errNoExperiment)
	refuse("POST", "/containers/{id...}/checkpoints", errNoExperiment)
	refuse("DELETE", "/containers/{id}/checkpoints/{checkpoint}", errNoExperiment)
}

// takes checks that a request's JSON is a T.
func takes[T any](c *call) error { return c.read(new(T), true) }

// ofVersion checks that a request says of which version of a thing it is an update.
func ofVersion(kind string) func(*call) error {
	return func(c *call) error {
		v := c.query("version")
		if _, err := strconv.ParseUint(v, 10, 64); err != nil {
			return invalid("invalid %s version '%s': %v", kind, v, err)
		}
		return nil
	}
}

func isBool(name string) func(*call) error {
	return func(c *call) error {
		v := c.query(name)
		if v == "" {
			return nil
		}
		if _, err := strconv.ParseBool(v); err != nil {
			return invalid("invalid value for %s: %s: %v", name, v, err)
		}
		return nil
	}
}

func isNumber(name string) func(*call) error {
	return func(c *call) error {
		if _, err := strconv.Atoi(c.query(name)); err != nil {
			return invalid("invalid value for %s: %v", name, err)
		}
		return nil
	}
}

// since refuses versions of the API that had no such request.
func since(v version) func(*call) error {
	return func(c *call) error {
		if c.version < v {
			return invalid("%s %s requires minimum API version %v", c.Method, c.URL.Path, v)
		}
		return nil
	}
}

func hasFilters(c *call) error {
	_, err := c.filters()
	return err
}

func hasStreams(c *call) error {
	if !c.flag("stdout") && !c.flag("stderr") {
		return invalid("must specify at least one of 'stdout' or 'stderr'")
	}
	return nil
}

func hasRemote(c *call) error {
	if _, err := reference.ParseNormalizedNamed(c.query("remote")); err != nil {
		return invalid("%v", err)
	}
	return nil
}

// named refuses an empty name at a path's end, where others are no such page.
func named(c *call) error {
	if c.vars["id"] == "" {
		return errNoPage
	}
	return nil
}

func noPlugin(c *call) error {
	return errdefs.ErrNotFound.WithMessage(`plugin "` + c.vars["name"] + `" not found`)
}
