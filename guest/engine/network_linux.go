package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/record"
	"github.com/berthvm/berth/guest/engine/settings"
	"github.com/berthvm/berth/guest/network"
)

// network gives the container its network and writes what it reads about it.
func (b *building) network(ctx context.Context) error {
	c, e := b.c, b.e
	mode := c.rec.HostConfig.NetworkMode
	switch {
	case mode.IsContainer():
		if own, err := e.find(ctx, mode.ConnectedContainer()); err == nil && own == c {
			return internal(errors.New("cannot join own network namespace"))
		}
		other, pid, err := e.donor(ctx, mode.ConnectedContainer())
		switch {
		case errdefs.IsNotFound(err):
			return internal(fmt.Errorf("joining network namespace of container: %w", err))
		case err != nil:
			return fmt.Errorf("cannot join network namespace of a non running container: %w", err)
		}
		b.netns = fmt.Sprintf("/proc/%d/ns/net", pid)
		return e.copyNetFiles(c, other)
	case mode.IsHost():
	default:
		path, err := e.opts.Networks.NewNS(ctx, c.id)
		if err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		b.netns = path
	}
	b.onUndo(func(ctx context.Context) { e.releaseNetwork(ctx, c) })
	if err := e.joinNetworks(ctx, c, b.netns); err != nil {
		return fmt.Errorf("failed to set up container networking: %w", err)
	}
	e.updateLinks(c)
	return e.writeNetFiles(c)
}

// joinNetworks attaches a container to all its networks and publishes its ports.
func (e *Engine) joinNetworks(ctx context.Context, c *Container, netns string) error {
	if err := e.checkLinks(c); err != nil {
		return err
	}
	for _, name := range e.sortedNetworks(c.rec) {
		if _, err := e.opts.Networks.Attach(ctx, e.attachRequest(c.rec, name, netns)); err != nil {
			return err
		}
		e.networkEvent(ctx, "connect", name, c.id)
	}
	return e.publishPorts(ctx, c)
}

func (e *Engine) attachRequest(rec *record.Record, name, netns string) network.AttachRequest {
	want := rec.Endpoints[name]
	req := network.AttachRequest{ContainerID: rec.ID, ContainerName: rec.Name, Network: name, NetNS: netns,
		GatewayPriority: want.GwPriority, DriverOpts: want.DriverOpts, NoIPv6: withoutIPv6(rec), Names: dnsNames(rec, want), DNS: rec.HostConfig.DNS}
	if len(want.MacAddress) > 0 {
		req.MAC = want.MacAddress.String()
	}
	if ipam := want.IPAMConfig; ipam != nil {
		req.IPv4, req.IPv6 = ipam.IPv4Address.Unmap(), ipam.IPv6Address
		for _, a := range ipam.LinkLocalIPs {
			req.LinkLocal = append(req.LinkLocal, a.Unmap())
		}
	}
	links := want.Links
	if mode, _ := e.networkName(string(rec.HostConfig.NetworkMode), ""); name == mode {
		links = append(slices.Clone(links), rec.HostConfig.Links...)
	}
	for _, link := range links {
		target, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = target
		}
		if req.Links == nil {
			req.Links = map[string]string{}
		}
		req.Links[filepath.Base(alias)] = strings.TrimPrefix(target, "/")
	}
	return req
}

// dnsNames are what other containers call this one.
func dnsNames(rec *record.Record, want *apinet.EndpointSettings) []string {
	names := []string{rec.Name}
	for _, n := range append(slices.Clone(want.Aliases), rec.ID[:12], rec.Config.Hostname) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func (e *Engine) releaseNetwork(ctx context.Context, c *Container) {
	e.closePorts(c)
	for _, ep := range e.opts.Networks.Endpoints(c.id) {
		e.networkEvent(ctx, "disconnect", ep.NetworkName, c.id)
	}
	if err := e.opts.Networks.Release(ctx, c.id); err != nil {
		e.log.Warn("cannot release the network", "container", c.id, "error", err)
	}
}

// withoutIPv6 says whether a container switches IPv6 off.
func withoutIPv6(rec *record.Record) bool {
	return rec.HostConfig.Sysctls["net.ipv6.conf.all.disable_ipv6"] == "1"
}

// writeNetFiles writes the container's hosts, resolv.conf and hostname. They are
// rewritten in place: the container has them mounted.
func (e *Engine) writeNetFiles(c *Container) error {
	rec := c.rec
	eps := e.opts.Networks.Endpoints(c.id)
	embedded := false
	for _, ep := range eps {
		if n, err := e.opts.Networks.Get(ep.NetworkID); err == nil && n.UserDefined() {
			embedded = true
		}
	}
	extra, err := e.extraHosts(rec.HostConfig.ExtraHosts)
	if err != nil {
		return err
	}
	extra = append(extra, e.linkHosts(c)...)
	hosts := network.Hosts(rec.Config.Hostname, rec.Config.Domainname, !withoutIPv6(rec), eps, extra)
	if rec.HostConfig.NetworkMode.IsHost() {
		if machine, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = network.HostsLike(machine, extra)
		}
	}
	dns := network.DNSConfig{Servers: rec.HostConfig.DNS, Search: rec.HostConfig.DNSSearch, Options: rec.HostConfig.DNSOptions}
	for name, data := range map[string][]byte{
		"hosts":       hosts,
		"resolv.conf": network.ResolvConf(dns, e.opts.DNS, embedded),
		"hostname":    []byte(rec.Config.Hostname + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, name), data, 0o644); err != nil {
			return fmt.Errorf("write the container's %s: %w", name, err)
		}
	}
	return nil
}

// copyNetFiles gives the container the files of the one whose network it shares.
func (e *Engine) copyNetFiles(c, other *Container) error {
	for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
		data, err := os.ReadFile(filepath.Join(other.dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, name), data, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copy the container's %s: %w", name, err)
		}
	}
	return nil
}

// extraHosts are the lines that --add-host asks for.
func (e *Engine) extraHosts(specs []string) ([]network.HostEntry, error) {
	var out []network.HostEntry
	for _, spec := range specs {
		name, addr, err := settings.ExtraHost(spec)
		if err != nil {
			return nil, err
		}
		if !addr.IsValid() {
			if addr = e.opts.HostAlias; !addr.IsValid() {
				return nil, invalid("unable to derive the IP value for host-gateway")
			}
		}
		out = append(out, network.HostEntry{Addr: addr, Names: []string{name}})
	}
	return out, nil
}

func (e *Engine) networkEvent(_ context.Context, action, name, container string) {
	n, err := e.opts.Networks.Get(name)
	if err != nil {
		return
	}
	e.publish("network", events.Action(action), n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": container})
}
