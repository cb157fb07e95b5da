package engine

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/network"
)

// Links are how containers on the default bridge know each other by name: lines in
// the hosts file of the one that links. They are no more than that: the variables
// that docker set long ago are gone from docker, too. On other networks there is
// DNS, and links are names in it.

// parseLink reads --link: "name", "name:alias", or what inspect shows,
// "/name:/container/alias".
func parseLink(spec string) (name, alias string, err error) {
	name, alias, ok := strings.Cut(spec, ":")
	switch {
	case spec == "":
		return "", "", invalid("empty string specified for links")
	case strings.Contains(alias, ":"):
		return "", "", invalid("invalid format for links: %s", spec)
	case !ok:
		return spec, spec, nil
	case strings.HasPrefix(name, "/"):
		return name[1:], path.Base(alias), nil
	}
	return name, strings.TrimPrefix(alias, "/"), nil
}

// resolveLinks finds what a new container links to by the default bridge, and takes
// it out of the settings, where inspect puts it back under the names of the day.
func (e *Engine) resolveLinks(ctx context.Context, rec *record.Record) error {
	if rec.HostConfig.NetworkMode.IsUserDefined() {
		return nil
	}
	for _, spec := range rec.HostConfig.Links {
		name, alias, err := parseLink(spec)
		if err != nil {
			return err
		}
		c, err := e.find(ctx, name)
		for err == nil && c.rec.HostConfig.NetworkMode.IsContainer() { // never changed
			name = c.rec.HostConfig.NetworkMode.ConnectedContainer()
			c, err = e.find(ctx, name)
		}
		switch {
		case errdefs.IsNotFound(err):
			// Not as not found: clients take that for the image's absence.
			return invalid("could not get container for %s: %v", name, err)
		case err != nil:
			return err
		case c.rec.HostConfig.NetworkMode.IsHost():
			return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		rec.Links = append(rec.Links, record.Link{ID: c.id, Alias: alias})
	}
	rec.HostConfig.Links = nil
	return nil
}

// linkAlias finds a container by the name that a link gives it, "container/alias".
// The caller holds mu.
func (e *Engine) linkAlias(name string) *Container {
	parent, alias, ok := strings.Cut(name, "/")
	c := e.byName[parent]
	if !ok || c == nil {
		return nil
	}
	for _, l := range c.linked() {
		if l.Alias == alias {
			return e.byID[l.ID]
		}
	}
	return nil
}

// linked are a container's links. Its record's slice is replaced and never changed.
func (c *Container) linked() []record.Link {
	if l := c.links.Load(); l != nil {
		return *l
	}
	return nil
}

// linkNames returns the names that links give to containers, by ID.
func (e *Engine) linkNames() map[string][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names map[string][]string
	for name, c := range e.byName {
		for _, l := range c.linked() {
			if names == nil {
				names = map[string][]string{}
			}
			names[l.ID] = append(names[l.ID], "/"+name+"/"+l.Alias)
		}
	}
	for _, list := range names {
		slices.Sort(list)
	}
	return names
}

// linkSpecs are a container's links as inspect shows them.
func (e *Engine) linkSpecs(c *Container) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	names := map[string]string{}
	for name, c := range e.byName {
		names[c.id] = name
	}
	var specs []string
	for _, l := range c.linked() {
		if name, ok := names[l.ID]; ok {
			specs = append(specs, fmt.Sprintf("/%s:/%s/%s", name, names[c.id], l.Alias))
		}
	}
	return specs
}

// children are what a container links to, by alias. A container that is gone takes
// the links to it with it.
func (e *Engine) children(c *Container) iter.Seq2[string, *Container] {
	return func(yield func(string, *Container) bool) {
		for _, l := range c.linked() {
			e.mu.Lock()
			child := e.byID[l.ID]
			e.mu.Unlock()
			if child != nil && !yield(l.Alias, child) {
				return
			}
		}
	}
}

// linkHosts are the hosts lines of what a container links to. One that does not run
// has no address.
func (e *Engine) linkHosts(c *Container) []network.HostEntry {
	var out []network.HostEntry
	for alias, child := range e.children(c) {
		hostname, name := child.names()
		names := []string{alias, hostname}
		if name != alias {
			names = append(names, name)
		}
		for _, ep := range e.opts.Networks.Endpoints(child.id) {
			if ep.NetworkName != "bridge" {
				continue
			}
			for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
				if p.IsValid() {
					out = append(out, network.HostEntry{Addr: p.Addr(), Names: names})
				}
			}
		}
	}
	return out
}

// names are the container's host name and its own. They change under op and mu:
// no lock is taken here, for the caller may hold those of another container.
func (c *Container) names() (hostname, name string) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	for n, other := range c.e.byName {
		if other == c {
			name = n
		}
	}
	return c.rec.Config.Hostname, name // never changed
}

// checkLinks refuses to start a container that links to one that cannot be
// reached.
func (e *Engine) checkLinks(c *Container) error {
	if _, ok := c.rec.Endpoints["bridge"]; !ok {
		return nil
	}
	_, own := c.names()
	for alias, child := range e.children(c) {
		_, name := child.names()
		child.mu.Lock()
		alive := child.rec.State.Status.Alive()
		_, bridged := child.rec.Endpoints["bridge"]
		child.mu.Unlock()
		switch {
		case !alive:
			return fmt.Errorf("Cannot link to a non running container: /%s AS /%s/%s", name, own, alias)
		case !bridged:
			return fmt.Errorf("Cannot link to /%s, as it does not belong to the default network", name)
		}
	}
	return nil
}

// updateLinks rewrites the hosts files of the running containers that link to c,
// whose address may be a new one.
func (e *Engine) updateLinks(c *Container) {
	e.mu.Lock()
	all := slices.Collect(maps.Values(e.byID))
	e.mu.Unlock()
	for _, other := range all {
		if !slices.ContainsFunc(other.linked(), func(l record.Link) bool { return l.ID == c.id }) {
			continue
		}
		other.mu.Lock()
		if other.run != nil {
			if err := e.writeNetFiles(other); err != nil {
				e.log.Warn("cannot tell a container where its link is", "container", other.id, "error", err)
			}
		}
		other.mu.Unlock()
	}
}

// RemoveLink removes the link that gives a container the name "container/alias".
func (e *Engine) RemoveLink(ctx context.Context, name string) error {
	if _, err := e.find(ctx, name); err != nil {
		return err
	}
	parentName, alias, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !ok {
		return conflict("Conflict, cannot remove the default link name of the container")
	}
	c, err := e.find(ctx, parentName)
	if err != nil {
		return fmt.Errorf("Cannot get parent /%s for link name %s", parentName, name)
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(c.rec.Links), func(l record.Link) bool { return l.Alias == alias })
	c.setLinks(left)
	c.save(true)
	if c.run != nil {
		return e.writeNetFiles(c)
	}
	return nil
}

// setLinks replaces the container's links. The caller holds mu, or is alone.
func (c *Container) setLinks(links []record.Link) {
	c.rec.Links = links
	c.links.Store(&links)
}
