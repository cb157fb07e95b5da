package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	apicontainer "github.com/moby/moby/api/types/container"
	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/settings"
	"github.com/berthvm/berth/guest/network"
)

// Publisher listens on the host for containers.
type Publisher interface {
	// Open listens on an address of the host's, whose port may be 0, for
	// connections to what target says when they come, and returns where it does. It
	// listens until the HostPort is closed. proto is "tcp" or "udp", or "tcp6" or "udp6"
	// where "[::]" is no IPv4 address too; the port of "sctp" and "sctp6" is taken in
	// the machine only.
	Open(ctx context.Context, proto, address string, target func() netip.AddrPort) (netip.AddrPort, HostPort, error)
}

// HostPort is a listener on the host.
type HostPort interface {
	io.Closer
	// Moved has to be called when target says something else than before.
	Moved()
}

// published is one port of a container's that is reached on the host or, with a host
// port of 0, at the container's own address only.
type published struct {
	port   apinet.Port
	hostIP netip.Addr // invalid: all addresses
	host   uint16
	open   HostPort // nil: inside the machine only
}

// publishPorts publishes the container's ports, on the host and in the machine. It is
// all or nothing. Where no network lets them be published it does nothing, as docker.
func (e *Engine) publishPorts(ctx context.Context, c *Container) error {
	want, err := settings.Ports(c.rec.Config, c.rec.HostConfig)
	if err != nil || len(want) == 0 {
		return err
	}
	ways, binding := fromHost(e.opts.Networks.Ways(c.id)), e.hostBinding(c.id)
	for _, w := range want {
		routed := routedPorts(w, ways)
		if !w.HostIP.IsValid() {
			w.HostIP = binding
		}
		if !translated(&w, ways) {
			c.addPorts(routed...)
			continue
		}
		p, err := e.publishPort(ctx, c.id, w)
		if err != nil {
			e.closePorts(c)
			return e.notPublished(c, err)
		}
		c.addPorts(append(routed, p)...)
	}
	if err := e.opts.Networks.Publish(ctx, c.id, c.inMachine()); err != nil {
		e.closePorts(c)
		return e.notPublished(c, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ways = ways
	return nil
}

// notPublished says in docker's words why a port is not published.
func (e *Engine) notPublished(c *Container, err error) error {
	return internal(fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", c.rec.Name, e.endpointID(c.id), err))
}

// fromHost is how ports are reached by the host, whose listeners carry connections of
// both families to either: it makes no difference which one is translated as long as
// the other is not routed.
func fromHost(w network.Ways) network.Ways {
	w.Translated4 = w.Translated4 || w.Translated6 && !w.Routed4
	w.Translated6 = w.Translated6 || w.Translated4 && !w.Routed6
	return w
}

// translated reports whether a port is reached at addresses of the host's, and makes
// them those of one family where the other is routed.
func translated(w *settings.Port, ways network.Ways) bool {
	switch {
	case w.HostIP.IsValid():
	case ways.Translated4 && ways.Translated6:
		return true
	case ways.Translated4:
		w.HostIP = netip.IPv4Unspecified()
	default:
		w.HostIP = netip.IPv6Unspecified()
	}
	if w.HostIP.Unmap().Is4() {
		return ways.Translated4
	}
	return ways.Translated6
}

// routedPorts are what a port is published as at the container's own addresses, where
// the host's are not used; of one that is asked for only the family says something.
func routedPorts(w settings.Port, ways network.Ways) (out []published) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		routed := ways.Routed4 && any.Is4() || ways.Routed6 && any.Is6()
		if routed && (!w.HostIP.IsValid() || w.HostIP.Unmap().Is4() == any.Is4()) {
			out = append(out, published{port: w.Port, hostIP: any})
		}
	}
	return out
}

func (c *Container) addPorts(ports ...published) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports = append(c.ports, ports...)
}

// endpointID is that of the endpoint that ports are published from.
func (e *Engine) endpointID(id string) string {
	for _, ep := range e.opts.Networks.Endpoints(id) {
		return ep.ID
	}
	return ""
}

// hostBinding is where ports are published when nobody says, by the option of the
// network that they are published from.
func (e *Engine) hostBinding(id string) netip.Addr {
	for _, ep := range e.opts.Networks.Endpoints(id) {
		if n, err := e.opts.Networks.Get(ep.NetworkID); err == nil && ep.Gateway4.IsValid() {
			return n.HostBinding()
		}
	}
	return netip.Addr{}
}

// republish makes what is published fit a running container's networks, which have
// changed.
func (e *Engine) republish(ctx context.Context, c *Container) error {
	c.mu.Lock()
	running, ports, was := c.run != nil, slices.Clone(c.ports), c.ways
	c.mu.Unlock()
	if !running {
		return nil
	}
	if fromHost(e.opts.Networks.Ways(c.id)) != was {
		e.closePorts(c)
		return e.publishPorts(ctx, c)
	}
	for _, p := range ports {
		if p.open != nil {
			p.open.Moved()
		}
	}
	return nil
}

// inMachine is what the machine itself forwards.
func (c *Container) inMachine() []network.Port {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []network.Port
	for _, p := range c.ports {
		out = append(out, network.Port{Proto: string(p.port.Proto()), HostIP: p.hostIP, HostPort: p.host, ContainerPort: p.port.Num()})
	}
	return out
}

// publishPort listens for one binding, on the first port of its range that is
// free.
func (e *Engine) publishPort(ctx context.Context, id string, w settings.Port) (published, error) {
	p := published{port: w.Port, hostIP: w.HostIP}
	target := func() netip.AddrPort { // the container's networks may change
		addr, _ := e.opts.Networks.Address(id)
		return netip.AddrPortFrom(addr, w.Port.Num())
	}
	if e.opts.Publisher == nil {
		p.host = max(w.First, 1)
		return p, nil
	}
	var failed error
	for n := int(w.First); n <= int(w.Last); n++ {
		at, open, err := e.listen(ctx, string(w.Port.Proto()), w.HostIP, uint16(n), target)
		if err == nil {
			p.host, p.open = at.Port(), open
			return p, nil
		}
		failed = err
		if !strings.Contains(err.Error(), allocated) {
			break
		}
	}
	return p, failed
}

// allocated is in the error of a port that somebody else has.
const allocated = "port is already allocated"

// listen opens one listener. For all addresses it is the IPv6 one, which takes
// IPv4 too, unless the host has no IPv6.
func (e *Engine) listen(ctx context.Context, proto string, ip netip.Addr, port uint16, target func() netip.AddrPort) (netip.AddrPort, HostPort, error) {
	if ip == netip.IPv6Unspecified() {
		proto += "6" // IPv4 is another's to publish, or nobody's
	}
	if ip.IsValid() {
		return e.opts.Publisher.Open(ctx, proto, netip.AddrPortFrom(ip, port).String(), target)
	}
	at, open, err := e.opts.Publisher.Open(ctx, proto, netip.AddrPortFrom(netip.IPv6Unspecified(), port).String(), target)
	if err == nil {
		return at, open, nil
	}
	if strings.Contains(err.Error(), allocated) {
		//lint:ignore ST1005 docker's words, which clients look for
		return at, nil, fmt.Errorf("Bind for 0.0.0.0:%d failed: %s", port, allocated)
	}
	return e.opts.Publisher.Open(ctx, proto, netip.AddrPortFrom(netip.IPv4Unspecified(), port).String(), target)
}

// closePorts takes everything back that is published for a container. What the
// machine forwards goes with the container's network.
func (e *Engine) closePorts(c *Container) {
	c.mu.Lock()
	ports := c.ports
	c.ports, c.ways = nil, network.Ways{}
	c.mu.Unlock()
	for _, p := range ports {
		if p.open != nil {
			_ = p.open.Close()
		}
	}
}

// publishAgain publishes the ports of a container that ran on without an engine:
// the host listens only as long as the engine lives.
func (e *Engine) publishAgain(ctx context.Context, c *Container) {
	c.mu.Lock()
	c.ways = fromHost(e.opts.Networks.Ways(c.id))
	c.mu.Unlock()
	for _, was := range e.opts.Networks.Ports(c.id) {
		port, ok := apinet.PortFrom(was.ContainerPort, apinet.IPProtocol(was.Proto))
		if !ok {
			continue
		}
		if was.HostPort == 0 {
			c.addPorts(published{port: port, hostIP: was.HostIP})
			continue
		}
		w := settings.Port{Port: port, HostIP: was.HostIP, First: was.HostPort, Last: was.HostPort}
		p, err := e.publishPort(ctx, c.id, w)
		// The host may not have noticed yet that the former engine is gone.
		for try := 0; try < 10 && err != nil && strings.Contains(err.Error(), allocated) && sleep(ctx, 50*time.Millisecond); try++ {
			p, err = e.publishPort(ctx, c.id, w)
		}
		if err != nil {
			e.log.Error("a port is no longer published", "container", c.id, "port", port.String(), "error", err)
			continue
		}
		c.addPorts(p)
	}
}

// portMap is what inspect shows. The caller holds mu.
func (c *Container) portMap() apinet.PortMap {
	out := apinet.PortMap{}
	for p := range c.rec.Config.ExposedPorts {
		out[p] = nil
	}
	for _, p := range c.ports {
		for _, ip := range p.addresses() {
			b := apinet.PortBinding{HostIP: ip}
			if p.host != 0 {
				b.HostPort = strconv.Itoa(int(p.host))
			}
			out[p.port] = append(out[p.port], b)
		}
	}
	return out
}

func (p published) addresses() []netip.Addr {
	if p.hostIP.IsValid() {
		return []netip.Addr{p.hostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// portList is what a list shows. The caller holds mu.
func (c *Container) portList() []apicontainer.PortSummary {
	out := []apicontainer.PortSummary{}
	if !c.rec.State.Status.Alive() {
		return out
	}
	known := map[apinet.Port]bool{}
	for _, p := range c.ports {
		if p.host == 0 {
			continue
		}
		known[p.port] = true
		for _, ip := range p.addresses() {
			out = append(out, apicontainer.PortSummary{IP: ip, PrivatePort: p.port.Num(), PublicPort: p.host, Type: string(p.port.Proto())})
		}
	}
	for p := range c.rec.Config.ExposedPorts {
		if !known[p] {
			out = append(out, apicontainer.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(out, func(a, b apicontainer.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), a.IP.Compare(b.IP), cmp.Compare(a.PublicPort, b.PublicPort))
	})
	return out
}
