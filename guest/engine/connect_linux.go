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
// its next start. It is not on it after an error, such as that of a port which the
// network would publish and somebody else has.
func (e *Engine) Connect(ctx context.Context, networkName, name string, want *apinet.EndpointSettings) error {
	if want == nil {
		want = &apinet.EndpointSettings{}
	}
	return e.onNetwork(ctx, networkName, name, func(c *Container, n network.Network) (attached bool, err error) {
		if err := c.mayJoin(n); err != nil {
			return false, err
		}
		if err := checkEndpoint(&n, n.Name, want); err != nil {
			return false, invalid("%v", err)
		}
		before := c.rec.Endpoints
		if before[n.Name] != nil {
			if c.run != nil {
				return false, errdefs.ErrPermissionDenied.WithMessage("endpoint with name " + c.rec.Name + " already exists in network " + n.Name)
			}
			return false, nil // docker keeps the settings it has
		}
		endpoints := map[string]*apinet.EndpointSettings{}
		maps.Copy(endpoints, before)
		endpoints[n.Name] = asked(want)
		c.rec.Endpoints = endpoints
		if c.run == nil {
			return false, nil
		}
		if err := e.attachNow(ctx, c, n); err != nil {
			c.rec.Endpoints = before
			return false, err
		}
		return true, nil
	})
}

// onNetwork calls f with a container that is kept from changing, and its network,
// saves the container afterwards and publishes its ports where they are reached now.
// When they cannot be published, what f has attached is detached again. f is called
// with mu held.
func (e *Engine) onNetwork(ctx context.Context, networkName, name string, f func(*Container, network.Network) (attached bool, err error)) error {
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
	attached, err := func() (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.rec.State.Status == record.Removing || c.rec.State.Status == record.Dead {
			return false, conflict("Container %s is marked for removal and cannot be connected or disconnected to the network", c.id)
		}
		attached, err := f(c, n)
		if err == nil {
			c.save(true)
		}
		return attached, err
	}()
	if err != nil {
		return err
	}
	err = e.republish(ctx, c)
	switch {
	case attached && err != nil:
		ctx := context.WithoutCancel(ctx)
		return errors.Join(err, e.detachAgain(ctx, c, n), e.republish(ctx, c))
	case attached:
		e.networkEvent(ctx, "connect", n.Name, c.id)
	}
	return err
}

// detachAgain undoes what Connect has done to a container that runs.
func (e *Engine) detachAgain(ctx context.Context, c *Container, n network.Network) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := e.opts.Networks.Detach(ctx, c.id, n.ID)
	c.leave(n.Name)
	c.save(true)
	return errors.Join(err, e.writeNetFiles(c))
}

// leave takes a network off the container's record. The caller holds mu.
func (c *Container) leave(networkName string) {
	endpoints := maps.Clone(c.rec.Endpoints)
	delete(endpoints, networkName)
	c.rec.Endpoints = endpoints
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
	return nil
}

// Disconnect takes a container off a network. With force it is no error that the
// container or the network is no more.
func (e *Engine) Disconnect(ctx context.Context, networkName, name string, force bool) error {
	err := e.onNetwork(ctx, networkName, name, func(c *Container, n network.Network) (attached bool, err error) {
		if n.Name == network.Host && c.rec.HostConfig.NetworkMode.IsHost() && c.run != nil {
			return false, invalid("cannot disconnect container from host network - container was created in host network mode")
		}
		if c.rec.Endpoints[n.Name] == nil {
			return false, errdefs.ErrPermissionDenied.WithMessage("container " + c.id + " is not connected to network " + n.Name)
		}
		if c.run != nil {
			if err := e.opts.Networks.Detach(ctx, c.id, n.ID); err != nil && !force && !errdefs.IsNotFound(err) {
				return false, err
			}
			e.networkEvent(ctx, "disconnect", n.Name, c.id)
		}
		c.leave(n.Name)
		if c.run != nil {
			return false, e.writeNetFiles(c)
		}
		return false, nil
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
	c.leave(networkName)
	c.save(true)
	return nil
}
