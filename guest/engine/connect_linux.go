package engine

import (
	"context"
	"errors"
	"maps"

	"github.com/containerd/errdefs"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/network"
)

// Connect puts a container on a further network: at once when it runs, else with
// its next start.
func (e *Engine) Connect(ctx context.Context, networkName, name string, want *apinet.EndpointSettings) error {
	if want == nil {
		want = &apinet.EndpointSettings{}
	}
	return e.onNetwork(ctx, networkName, name, func(c *Container, n network.Network) error {
		if err := c.mayJoin(n); err != nil {
			return err
		}
		if err := checkEndpoint(&n, n.Name, want); err != nil {
			return invalid("%v", err)
		}
		before := c.rec.Endpoints
		if before[n.Name] != nil {
			if c.run != nil {
				return errdefs.ErrPermissionDenied.WithMessage("endpoint with name " + c.rec.Name + " already exists in network " + n.Name)
			}
			return nil // docker keeps the settings it has
		}
		endpoints := map[string]*apinet.EndpointSettings{}
		maps.Copy(endpoints, before)
		endpoints[n.Name] = asked(want)
		c.rec.Endpoints = endpoints
		if c.run == nil {
			return nil
		}
		if err := e.attachNow(ctx, c, n); err != nil {
			c.rec.Endpoints = before
			return err
		}
		return nil
	})
}

// onNetwork calls f with a container that is kept from changing, and its network,
// and saves the container afterwards. f is called with mu held.
func (e *Engine) onNetwork(ctx context.Context, networkName, name string, f func(*Container, network.Network) error) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	n, err := e.opts.Networks.Get(networkName)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if err := func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.rec.State.Status == record.Removing || c.rec.State.Status == record.Dead {
			return conflict("Container %s is marked for removal and cannot be connected or disconnected to the network", c.id)
		}
		if err := f(c, n); err != nil {
			return err
		}
		c.save(true)
		return nil
	}(); err != nil {
		return err
	}
	return e.republish(ctx, c)
}

// mayJoin says why a container cannot be on a further network. The caller holds mu.
func (c *Container) mayJoin(n network.Network) error {
	mode := c.rec.HostConfig.NetworkMode
	shared := "container sharing network namespace with another container or host cannot be connected to any other network"
	switch {
	case mode.IsContainer():
		return invalid("%s", shared)
	case n.Driver == network.DriverHost && !mode.IsHost():
		return invalid("cannot connect container to host network - container must be created in host network mode")
	case n.ConfigOnly:
		return errdefs.ErrPermissionDenied.WithMessage(n.Name + " is a configuration-only network: no container can be on it")
	}
	for name := range c.rec.Endpoints {
		switch {
		case name == n.Name:
		case name == network.Host || n.Name == network.Host:
			return invalid("%s", shared)
		case name == network.None || n.Name == network.None:
			return invalid("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	return nil
}

// attachNow connects a container that runs. The caller holds mu.
func (e *Engine) attachNow(ctx context.Context, c *Container, n network.Network) error {
	netns, err := e.opts.Networks.NewNS(ctx, c.id)
	if err != nil {
		return err
	}
	if _, err = e.opts.Networks.Attach(ctx, e.attachRequest(c.rec, n.Name, netns)); err != nil {
		return err
	}
	if err := e.writeNetFiles(c); err != nil {
		return errors.Join(err, e.opts.Networks.Detach(ctx, c.id, n.ID))
	}
	e.networkEvent(ctx, "connect", n.Name, c.id)
	return nil
}

// Disconnect takes a container off a network. With force it is no error that the
// container or the network is no more.
func (e *Engine) Disconnect(ctx context.Context, networkName, name string, force bool) error {
	err := e.onNetwork(ctx, networkName, name, func(c *Container, n network.Network) error {
		if n.Name == network.Host && c.rec.HostConfig.NetworkMode.IsHost() && c.run != nil {
			return invalid("cannot disconnect container from host network - container was created in host network mode")
		}
		if c.rec.Endpoints[n.Name] == nil {
			return errdefs.ErrPermissionDenied.WithMessage("container " + c.id + " is not connected to network " + n.Name)
		}
		if c.run != nil {
			if err := e.opts.Networks.Detach(ctx, c.id, n.ID); err != nil && !force && !errdefs.IsNotFound(err) {
				return err
			}
			e.networkEvent(ctx, "disconnect", n.Name, c.id)
		}
		endpoints := maps.Clone(c.rec.Endpoints)
		delete(endpoints, n.Name)
		c.rec.Endpoints = endpoints
		if c.run != nil {
			return e.writeNetFiles(c)
		}
		return nil
	})
	if force && errdefs.IsNotFound(err) {
		return e.forgetNetwork(ctx, networkName, name)
	}
	return err
}

// forgetNetwork takes a network that is no more off a container's record.
func (e *Engine) forgetNetwork(ctx context.Context, networkName, name string) error {
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Endpoints[networkName] == nil {
		return errdefs.ErrNotFound.WithMessage("network " + networkName + " not found")
	}
	endpoints := maps.Clone(c.rec.Endpoints)
	delete(endpoints, networkName)
	c.rec.Endpoints = endpoints
	c.save(true)
	return nil
}
