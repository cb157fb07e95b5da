package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/ipam"
	"github.com/berthvm/berth/guest/network/internal/link"
)

// sandbox is what a container has of networks.
type sandbox struct {
	id string

	op     sync.Mutex // one change at a time; guards what follows
	dns    *dnsServer
	lent   *lentLoopback
	routes [2]route // the default routes that are set: IPv4, IPv6
	gone   bool     // released: a new one must be made

	// Guarded by Manager.mu, and changed only with op held.
	netns     string
	endpoints []Endpoint // the one with the default route first
	ports     []Port
	forwards  []firewall.Forward
	upstream  []netip.Addr
}

// adopt takes up what an earlier process wrote down. Called from Open.
func (m *Manager) adopt(f sandboxFile) {
	sb := &sandbox{id: f.ContainerID, netns: f.NetNS, ports: f.Ports, upstream: f.DNS}
	for _, ep := range f.Endpoints {
		n := m.networks[ep.NetworkID]
		if n == nil {
			continue // Restore removes its interface
		}
		n.using++
		for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if pool := n.poolOf(p.Addr()); p.IsValid() && pool != nil {
				pool.Allocate(p.Addr())
			}
		}
		sb.endpoints = append(sb.endpoints, ep)
	}
	sb.forwards = m.forwards(sb.ports, sb.endpoints)
	sb.routes = defaultRoutes(sb.endpoints)
	m.sandboxes[sb.id] = sb
}

// lockSandbox returns a container's sandbox with op held, or nil if it has none
// and none is to be made.
func (m *Manager) lockSandbox(id string, create bool) (*sandbox, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, errClosed
		}
		sb := m.sandboxes[id]
		if sb == nil && create {
			sb = &sandbox{id: id}
			m.sandboxes[id] = sb
		}
		m.mu.Unlock()
		if sb == nil {
			return nil, nil
		}
		sb.op.Lock()
		if !sb.gone {
			return sb, nil
		}
		sb.op.Unlock() // it was released meanwhile
	}
}

// unlock ends a change. A sandbox with nothing in it is forgotten.
func (m *Manager) unlock(sb *sandbox) {
	m.mu.Lock()
	if len(sb.endpoints) == 0 && len(sb.ports) == 0 {
		sb.gone = true
		delete(m.sandboxes, sb.id)
	}
	m.mu.Unlock()
	sb.op.Unlock()
}

// Attach connects a container to a network: on a running one, too. On host and
// none it only records the endpoint. Afterwards the container's default route
// and DNS server fit all its endpoints. A failed Attach leaves nothing behind.
func (m *Manager) Attach(ctx context.Context, req AttachRequest) (Endpoint, error) {
	if !validID(req.ContainerID) {
		return Endpoint{}, invalid("invalid container ID %q", req.ContainerID)
	}
	n, err := m.find(req.Network)
	if err != nil {
		return Endpoint{}, err
	}
	sb, err := m.lockSandbox(req.ContainerID, true)
	if err != nil {
		return Endpoint{}, err
	}
	defer m.unlock(sb)
	ep, err := m.endpoint(n, sb, req)
	if err != nil {
		return Endpoint{}, err
	}
	before := m.insert(sb, ep, req)
	if err := m.settle(sb); err != nil {
		m.mu.Lock()
		sb.endpoints = before
		m.mu.Unlock()
		err = errors.Join(err, m.dropInterface(ep), m.settle(sb)) // the next Attach may need the name
		m.discard(ep)
		return Endpoint{}, err
	}
	return ep.clone(), nil
}

// endpoint makes an endpoint, or takes the one that was made ahead of time.
func (m *Manager) endpoint(n *network, sb *sandbox, req AttachRequest) (Endpoint, error) {
	if ep, ok, err := m.takeSpare(n, sb, req); ok || err != nil {
		return ep, err
	}
	ep, err := m.reserve(n, sb, req)
	if err != nil || !n.def.hasInterfaces() {
		return ep, err
	}
	ns, err := link.OpenNS(req.NetNS)
	if err == nil {
		if n.def.onParent() {
			err = m.connectChild(n.def, ep, ns)
		} else {
			err = m.connect(n, ep, ns)
		}
		if err == nil {
			if err = finish(ns, ep, req); err != nil {
				err = errors.Join(err, m.dropInterface(ep))
			}
		}
		ns.Close()
	}
	if err != nil {
		m.unreserve(ep)
		return Endpoint{}, fmt.Errorf("failed to set up container networking: %w", err)
	}
	return ep, nil
}

// reserve checks a request and takes what it needs of the network. What is not free
// may be on its way back from a container that has ended: that is waited for.
func (m *Manager) reserve(n *network, sb *sandbox, req AttachRequest) (Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.gone {
		return Endpoint{}, notFound("network %s not found", req.Network)
	}
	if err := checkAttach(n.def, sb.endpoints, req); err != nil {
		return Endpoint{}, err
	}
	ep := Endpoint{ID: newID(), NetworkID: n.def.ID, NetworkName: n.def.Name}.of(req)
	if !n.def.hasInterfaces() {
		n.using++
		return ep, nil
	}
	err := n.allocate(&ep, req)
	for err != nil && n.leave > 0 {
		m.left.Wait()
		if n.gone {
			return Endpoint{}, notFound("network %s not found", req.Network)
		}
		err = n.allocate(&ep, req)
	}
	if err != nil {
		return Endpoint{}, err
	}
	if err := ep.setMAC(n.def.Driver, req.MAC); err != nil {
		n.release(ep)
		return Endpoint{}, err
	}
	if n.def.Driver == DriverBridge {
		ep.Device = "veth" + ep.ID[:7]
	}
	if ep.Interface = req.DriverOpts[OptionIfname]; ep.Interface == "" {
		ep.Interface = nextInterface(sb.endpoints, n.def.ifPrefix())
	}
	n.using++
	return ep, nil
}

// of returns the endpoint as that of the container that asked for it.
func (e Endpoint) of(req AttachRequest) Endpoint {
	e.ContainerID, e.ContainerName, e.NetNS = req.ContainerID, req.ContainerName, req.NetNS
	e.Names, e.Links, e.Priority, e.DriverOpts = req.Names, req.Links, req.GatewayPriority, req.DriverOpts
	return e.clone()
}

// setMAC gives an endpoint with its addresses the hardware address that was asked
// for, or one that is made of them. An ipvlan interface has its parent's.
func (e *Endpoint) setMAC(driver, want string) error {
	first := e.IPv4.Addr()
	if !e.IPv4.IsValid() {
		first = e.IPv6.Addr()
	}
	switch {
	case driver == DriverIPvlan && want != "":
		return invalid("ipvlan interfaces do not support custom mac address assignment")
	case driver == DriverIPvlan:
	case want != "":
		mac, err := net.ParseMAC(want)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("invalid MAC address: %s", want)
		}
		e.MAC = mac.String()
	case first.IsValid():
		e.MAC = link.MAC(first).String()
	default:
		e.MAC = randomMAC()
	}
	return nil
}

func checkAttach(n Network, have []Endpoint, req AttachRequest) error {
	if err := CheckEndpointOptions(req.DriverOpts); err != nil {
		return err
	}
	for _, ep := range have {
		switch {
		case ep.Interface != "" && ep.Interface == req.DriverOpts[OptionIfname]:
			return conflict("error renaming interface to %q: file exists", ep.Interface)
		case ep.NetworkID == n.ID:
			return forbidden("endpoint with name %s already exists in network %s", req.ContainerName, n.Name)
		case ep.NetworkName == Host || n.Name == Host:
			return invalid("container sharing network namespace with another container or host cannot be connected to any other network")
		case ep.NetworkName == None || n.Name == None:
			return invalid("container cannot be connected to multiple networks with one of the networks in private (none) mode")
		}
	}
	switch {
	case n.ConfigOnly:
		return forbidden("%s is a configuration-only network: no container can be on it", n.Name)
	case n.hasInterfaces() && req.NetNS == "":
		return errors.New("a container on a network needs a network namespace")
	case (req.IPv4.IsValid() || req.IPv6.IsValid()) && !n.UserDefined():
		return invalid("user specified IP address is supported on user defined networks only")
	}
	return nil
}

// allocate takes addresses for an endpoint. Called with Manager.mu held.
func (n *network) allocate(ep *Endpoint, req AttachRequest) error {
	for _, f := range []struct {
		want   netip.Addr
		family string
		v6     bool
		prefix *netip.Prefix
		gw     *netip.Addr
	}{{req.IPv4, "IPv4", false, &ep.IPv4, &ep.Gateway4}, {req.IPv6, "IPv6", true, &ep.IPv6, &ep.Gateway6}} {
		pool := n.pool(f.v6)
		if f.want.IsValid() {
			pool = n.poolOf(f.want)
			if f.want.Is6() != f.v6 || pool == nil {
				n.release(*ep)
				return invalid("invalid config for network %s: invalid endpoint settings:\nno configured subnet contains IP address %s", n.def.Name, f.want)
			}
		}
		if pool == nil || f.v6 && (req.NoIPv6 || disablesIPv6(req.DriverOpts[OptionSysctls])) {
			continue
		}
		a, err := pool.Allocate(f.want)
		if err != nil {
			n.release(*ep)
			if errors.Is(err, ipam.ErrTaken) {
				return forbidden("Address already in use")
			}
			return errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("no available %s addresses on this network's address pools: %s (%s)",
				f.family, n.def.Name, n.def.ID))
		}
		*f.prefix = pool.Prefix(a)
		if !n.def.isolated() && !n.def.direct() {
			*f.gw = n.gateway(a)
		}
	}
	ep.Direct = n.def.direct()
	return nil
}

// release gives an endpoint's addresses back. Called with Manager.mu held.
func (n *network) release(ep Endpoint) {
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if !p.IsValid() {
			continue
		}
		if pool := n.poolOf(p.Addr()); pool != nil {
			pool.Release(p.Addr())
		}
	}
}

// unreserve undoes reserve.
func (m *Manager) unreserve(ep Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.networks[ep.NetworkID]; n != nil {
		n.release(ep)
		n.using--
	}
}

// discard undoes reserve and connect. The network is free at once; the address
// only when the interface, which may still answer for it, is gone: in the
// background, because the kernel takes its time.
func (m *Manager) discard(eps ...Endpoint) {
	var of []*network
	m.mu.Lock()
	for _, ep := range eps {
		if n := m.networks[ep.NetworkID]; n != nil {
			n.using--
			n.leave++
			of = append(of, n)
		}
	}
	m.mu.Unlock()
	drain := func() {
		time.Sleep(answerFirst)
		m.drain(eps...)
		m.mu.Lock()
		for _, n := range of {
			n.leave--
		}
		m.mu.Unlock()
		m.left.Broadcast()
		if err := m.refill(); err != nil {
			m.log.Warn("cannot prepare the next container's network", "error", err)
		}
	}
	if !m.background(drain) {
		drain()
	}
}

// answerFirst is how long the kernel's part of a release, which is slow, leaves
// the processor to the answer that somebody waits for.
const answerFirst = 10 * time.Millisecond

// drain removes interfaces and then gives their addresses back.
func (m *Manager) drain(eps ...Endpoint) {
	for _, ep := range eps {
		if err := m.dropInterface(ep); err != nil {
			m.log.Error("cannot remove a container's interface", "interface", ep.Device, "error", err)
		}
		m.mu.Lock()
		if n := m.networks[ep.NetworkID]; n != nil {
			n.release(ep)
		}
		m.mu.Unlock()
	}
}

func nextInterface(have []Endpoint, prefix string) string {
	for i := 0; ; i++ {
		name := prefix + strconv.Itoa(i)
		if !slices.ContainsFunc(have, func(ep Endpoint) bool { return ep.Interface == name }) {
			return name
		}
	}
}

// connect makes the endpoint's interfaces. A failed connect leaves none.
func (m *Manager) connect(n *network, ep Endpoint, ns *link.NS) (err error) {
	bridge, err := m.ensureBridge(n)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	err = m.root.AddVeth(link.VethSpec{Name: ep.Device, Bridge: bridge, PeerName: ep.Interface, PeerMAC: mac, PeerNS: ns, MTU: n.def.MTU})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			m.root.Delete(ep.Device)
		}
	}()
	port, err := m.root.ByName(ep.Device)
	if err != nil {
		return err
	}
	if !n.def.flag(OptionICC) {
		if err := m.root.Isolate(port.Index); err != nil {
			return fmt.Errorf("cannot keep containers apart: %w", err)
		}
	}
	if ep.IPv6.IsValid() {
		if err := ns.Do(func() error { return setIPv6(ep.Interface, true) }); err != nil {
			return err
		}
	}
	if err := inside(ns, ep); err != nil {
		return err
	}
	return m.root.SyncCarrier(port.Index, bridge)
}

// inside gives the container's end its addresses and switches it on.
func inside(ns *link.NS, ep Endpoint) error {
	c, err := ns.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	l, err := c.ByName(ep.Interface)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			if err := c.AddAddr(l.Index, p); err != nil {
				return err
			}
		}
	}
	if err := c.SetUp(l.Index); err != nil {
		return err
	}
	return c.SyncCarrier(l.Index)
}

// finish does what an endpoint's user asked for besides: further addresses and
// settings of the interface.
func finish(ns *link.NS, ep Endpoint, req AttachRequest) error {
	settings, err := parseSysctls(req.DriverOpts[OptionSysctls])
	if err != nil || len(settings)+len(req.LinkLocal) == 0 {
		return err
	}
	if len(req.LinkLocal) > 0 {
		c, err := ns.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		l, err := c.ByName(ep.Interface)
		if err != nil {
			return err
		}
		for _, a := range req.LinkLocal {
			bits := 16
			if a.Is6() {
				bits = 64
			}
			if err := c.AddAddr(l.Index, netip.PrefixFrom(a, bits)); err != nil {
				return err
			}
		}
	}
	return ns.Do(func() error {
		for _, s := range settings {
			if err := link.Sysctl(s.path(ep.Interface), s.value); err != nil {
				return invalid("cannot set %s of the interface: %v", s.name, err)
			}
		}
		return nil
	})
}

// insert adds an endpoint in its place: the first has the default route. It
// returns the endpoints before.
func (m *Manager) insert(sb *sandbox, ep Endpoint, req AttachRequest) []Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := sb.endpoints
	sb.netns = req.NetNS
	if len(req.DNS) > 0 {
		sb.upstream = slices.Clone(req.DNS)
	}
	sb.endpoints = append(slices.Clone(before), ep)
	slices.SortStableFunc(sb.endpoints, func(a, b Endpoint) int {
		return cmp.Or(
			-cmp.Compare(rank(a), rank(b)),
			-cmp.Compare(a.Priority, b.Priority),
			strings.Compare(a.NetworkName, b.NetworkName))
	})
	return before
}

// rank puts endpoints with a way out before those without.
func rank(ep Endpoint) int {
	switch {
	case ep.Gateway4.IsValid() || ep.Direct && ep.IPv4.IsValid():
		return 2
	case ep.Gateway6.IsValid() || ep.Direct && ep.IPv6.IsValid():
		return 1
	}
	return 0
}

// settle makes routes, DNS, published ports and the record of a container fit
// its endpoints. Called with op held.
func (m *Manager) settle(sb *sandbox) error {
	if err := m.settleRoutes(sb); err != nil {
		return err
	}
	if err := m.settleDNS(sb); err != nil {
		return err
	}
	if err := m.settlePorts(sb, sb.ports); err != nil {
		return err
	}
	return m.record(sb)
}

// record writes the sandbox down, or removes its record when it is empty.
func (m *Manager) record(sb *sandbox) error {
	m.mu.RLock()
	f := sandboxFile{ContainerID: sb.id, NetNS: sb.netns, Endpoints: slices.Clone(sb.endpoints), Ports: sb.ports, DNS: sb.upstream}
	m.mu.RUnlock()
	path := m.opts.sandboxPath(sb.id)
	if len(f.Endpoints) == 0 && len(f.Ports) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := writeWhole(path, f, false); err != nil {
		return fmt.Errorf("cannot record the container's network: %w", err)
	}
	return nil
}

// route is a default route. Without a gateway it leads to the interface.
type route struct {
	gw    netip.Addr
	iface string
}

// defaultRoutes are those of IPv4 and IPv6 that fit a container's endpoints.
func defaultRoutes(eps []Endpoint) (want [2]route) {
	for _, ep := range eps {
		for i, way := range []struct {
			gw  netip.Addr
			own netip.Prefix
		}{{ep.Gateway4, ep.IPv4}, {ep.Gateway6, ep.IPv6}} {
			if want[i].iface == "" && (way.gw.IsValid() || ep.Direct && way.own.IsValid()) {
				want[i] = route{way.gw, ep.Interface}
			}
		}
	}
	return want
}

// settleRoutes makes the default routes those of the first endpoints that have
// a gateway.
func (m *Manager) settleRoutes(sb *sandbox) error {
	want := defaultRoutes(sb.endpoints)
	if want == sb.routes {
		return nil
	}
	ns, err := link.OpenNS(sb.netns)
	if errors.Is(err, os.ErrNotExist) {
		sb.routes = [2]route{} // the container has ended
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := setRoutes(ns, sb.routes, want); err != nil {
		return err
	}
	sb.routes = want
	return nil
}

// setRoutes changes a namespace's default routes.
func setRoutes(ns *link.NS, have, want [2]route) error {
	c, err := ns.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for i, w := range want {
		if w == have[i] {
			continue
		}
		if err := setRoute(c, i == 1, w, have[i].iface != ""); err != nil {
			return err
		}
	}
	return nil
}

// setRoute changes one default route. One that is not ours to replace, which the
// container has made itself, is an error.
func setRoute(c *link.Conn, v6 bool, w route, replace bool) error {
	if w.iface == "" {
		return c.DeleteDefault(v6)
	}
	l, err := c.ByName(w.iface)
	if err != nil {
		return err
	}
	return c.SetDefault(l.Index, v6, w.gw, replace)
}

// Detach undoes one Attach. The error is errdefs' NotFound when the container is
// not on that network.
func (m *Manager) Detach(ctx context.Context, containerID, network string) error {
	n, err := m.find(network)
	if err != nil {
		return err
	}
	sb, err := m.lockSandbox(containerID, false)
	if err != nil {
		return err
	}
	missing := notFound("container %s is not connected to the network %s", containerID, n.def.Name)
	if sb == nil {
		return missing
	}
	defer m.unlock(sb)
	i := slices.IndexFunc(sb.endpoints, func(ep Endpoint) bool { return ep.NetworkID == n.def.ID })
	if i < 0 {
		return missing
	}
	ep := sb.endpoints[i]
	// Gone for the container when this returns, as a later Attach may need the name.
	if err := m.dropInterface(ep); err != nil {
		return err
	}
	m.mu.Lock()
	sb.endpoints = slices.Delete(slices.Clone(sb.endpoints), i, i+1)
	for i, r := range sb.routes {
		if r.iface == ep.Interface {
			sb.routes[i] = route{} // it went with the interface
		}
	}
	m.mu.Unlock()
	m.unreserve(ep)
	// Of the networks that are left one may be unfit to lead outside. That is no
	// reason to stay on this one.
	if err := m.settle(sb); err != nil {
		m.opts.Log.Warn("cannot set a container's way out", "container", containerID, "error", err)
	}
	return nil
}

// Release takes everything back that a container has: published ports, DNS
// server, endpoints, and the namespace that NewNS made for its ID. It is no error
// if there is nothing, so it may be called for any container that has stopped.
func (m *Manager) Release(ctx context.Context, containerID string) error {
	sb, err := m.lockSandbox(containerID, false)
	if err != nil {
		return err
	}
	if sb != nil {
		defer m.unlock(sb)
		// Those without an end in the machine can only be found in the namespace.
		for _, ep := range sb.endpoints {
			if ep.Device == "" {
				err = errors.Join(err, m.dropInterface(ep))
			}
		}
	}
	if err := errors.Join(err, m.RemoveNS(ctx, containerID)); sb == nil || err != nil {
		return err
	}
	sb.stopDNS()
	sb.stopLoopback()
	if err := m.settlePorts(sb, nil); err != nil {
		return err
	}
	m.mu.Lock()
	eps := sb.endpoints
	sb.endpoints = nil
	m.mu.Unlock()
	m.discard(eps...)
	return m.record(sb)
}

// Settle waits until the kernel's part of earlier Releases is done.
func (m *Manager) Settle() { m.work.Wait() }

// Rename changes a container's name and, on every endpoint of its, the DNS name
// that was the old one.
func (m *Manager) Rename(ctx context.Context, containerID, name string) error {
	sb, err := m.lockSandbox(containerID, false)
	if sb == nil || err != nil {
		return err
	}
	defer m.unlock(sb)
	m.mu.Lock()
	eps := slices.Clone(sb.endpoints)
	for i := range eps {
		names := slices.Clone(eps[i].Names)
		if j := slices.Index(names, eps[i].ContainerName); j >= 0 {
			names[j] = name
		}
		eps[i].Names, eps[i].ContainerName = names, name
	}
	sb.endpoints = eps
	m.mu.Unlock()
	return m.record(sb)
}

// Endpoints returns a container's endpoints, the one with the default route
// first.
func (m *Manager) Endpoints(containerID string) []Endpoint {
	m.mu.RLock()
	defer m.mu.RUnlock()
	sb := m.sandboxes[containerID]
	if sb == nil {
		return nil
	}
	return cloneAll(sb.endpoints)
}

func cloneAll(eps []Endpoint) []Endpoint {
	out := make([]Endpoint, len(eps))
	for i, ep := range eps {
		out[i] = ep.clone()
	}
	return out
}

// NetworkEndpoints returns the endpoints on a network, sorted by container ID.
func (m *Manager) NetworkEndpoints(nameOrID string) ([]Endpoint, error) {
	n, err := m.find(nameOrID)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out []Endpoint
	for _, id := range slices.Sorted(maps.Keys(m.sandboxes)) {
		for _, ep := range m.sandboxes[id].endpoints {
			if ep.NetworkID == n.def.ID {
				out = append(out, ep.clone())
			}
		}
	}
	return out, nil
}

// Stats reads the counters of a container's interfaces, sorted by name.
func (m *Manager) Stats(containerID string) ([]Stats, error) {
	var out []Stats
	for _, ep := range m.Endpoints(containerID) {
		if ep.Interface == "" {
			continue
		}
		s, err := m.counters(ep)
		if link.IsNotExist(err) {
			continue // the container has ended
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Stats) int { return strings.Compare(a.Interface, b.Interface) })
	return out, nil
}

// counters reads those of one endpoint.
func (m *Manager) counters(ep Endpoint) (Stats, error) {
	out := Stats{Interface: ep.Interface}
	if ep.Device == "" {
		l, err := childInfo(ep)
		if s := l.Stats; err == nil && s != nil {
			out.RxBytes, out.RxPackets, out.RxErrors, out.RxDropped = s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
			out.TxBytes, out.TxPackets, out.TxErrors, out.TxDropped = s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped
		}
		return out, err
	}
	l, err := m.root.ByName(ep.Device)
	if s := l.Stats; err == nil && s != nil { // what the machine sends the container receives
		out.RxBytes, out.RxPackets, out.RxErrors, out.RxDropped = s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped
		out.TxBytes, out.TxPackets, out.TxErrors, out.TxDropped = s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
	}
	return out, err
}
