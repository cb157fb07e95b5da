package engine

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/record"
)

// Connect puts a container on a further network: at once when it runs, else with
// its next start.
func (e *Engine) Connect(ctx context.Context, networkName, name string, want *apinet.EndpointSettings) error {
	n, err := e.opts.Networks.Get(networkName)
	if err != nil {
		return err
	}
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	mode := c.rec.HostConfig.NetworkMode
	switch {
	case c.rec.State.Status == record.Removing || c.rec.State.Status == record.Dead:
		return conflict("container is marked for removal and cannot be connected or disconnected to the network %s", n.Name)
	case mode.IsHost(), n.Name == "host":
		return errdefs.ErrPermissionDenied.WithMessage("container cannot be disconnected from host network or connected to host network")
	case mode.IsContainer():
		return errdefs.ErrPermissionDenied.WithMessage("container sharing network namespace with another container or host cannot be connected to any other network")
	case c.rec.Endpoints[n.Name] != nil:
		return errdefs.ErrPermissionDenied.WithMessage("endpoint with name " + c.rec.Name + " already exists in network " + n.Name)
	}
	if want == nil {
		want = &apinet.EndpointSettings{}
	}
	endpoints := maps.Clone(c.rec.Endpoints)
	if endpoints == nil {
		endpoints = map[string]*apinet.EndpointSettings{}
	}
	endpoints[n.Name] = want
	before := c.rec.Endpoints
	c.rec.Endpoints = endpoints
	if c.run != nil {
		netns, err := e.opts.Networks.NewNS(ctx, c.id)
		if err == nil {
			_, err = e.opts.Networks.Attach(ctx, e.attachRequest(c.rec, n.Name, netns))
		}
		if err == nil {
			err = e.writeNetFiles(c)
		}
		if err != nil {
			c.rec.Endpoints = before
			return err
		}
		e.networkEvent(ctx, "connect", n.Name, c.id)
	}
	c.save(true)
	return nil
}

// Disconnect takes a container off a network.
func (e *Engine) Disconnect(ctx context.Context, networkName, name string, force bool) error {
	n, err := e.opts.Networks.Get(networkName)
	if err != nil {
		return err
	}
	c, err := e.find(ctx, name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.Name == "host" {
		return errdefs.ErrPermissionDenied.WithMessage("container cannot be disconnected from host network or connected to host network")
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
		if err := e.writeNetFiles(c); err != nil {
			return err
		}
	}
	c.save(true)
	return nil
}

// NetworkUsers is how many containers, running or not, want a network.
func (e *Engine) NetworkUsers(name string) int {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.byID))
	e.mu.Unlock()
	n := 0
	for _, c := range list {
		c.mu.Lock()
		if c.rec.Endpoints[name] != nil {
			n++
		}
		c.mu.Unlock()
	}
	return n
}
