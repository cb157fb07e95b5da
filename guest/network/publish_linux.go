package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
)

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// Publish replaces the ports that are published for a container. They follow its
// default route when networks come and go. The error is errdefs' Conflict when
// another container has a port already.
func (m *Manager) Publish(ctx context.Context, containerID string, ports []Port) error {
	if !validID(containerID) {
		return invalid("invalid container ID %q", containerID)
	}
	for _, p := range ports {
		if _, ok := protocols[p.Proto]; !ok {
			return invalid("invalid protocol %q: tcp, udp or sctp is expected", p.Proto)
		}
		if p.ContainerPort == 0 {
			return errors.New("a published port needs its number")
		}
	}
	sb, err := m.lockSandbox(containerID, len(ports) > 0)
	if sb == nil || err != nil {
		return err
	}
	defer m.unlock(sb)
	if err := m.settlePorts(sb, slices.Clone(ports)); err != nil {
		return err
	}
	return m.record(sb)
}

// Ports returns what Publish was given.
func (m *Manager) Ports(containerID string) []Port {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if sb := m.sandboxes[containerID]; sb != nil {
		return slices.Clone(sb.ports)
	}
	return nil
}

// settlePorts makes ports those that are published, on the endpoints that are
// there now. Called with op held.
func (m *Manager) settlePorts(sb *sandbox, ports []Port) error {
	old := sb.forwards
	m.mu.Lock()
	want := m.forwards(ports, sb.endpoints)
	for _, other := range m.sandboxes {
		if other == sb {
			continue
		}
		for _, p := range ports {
			if slices.ContainsFunc(other.ports, p.conflicts) {
				m.mu.Unlock()
				return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Bind for %s failed: port is already allocated", p.host()))
			}
		}
	}
	before := sb.ports
	sb.ports, sb.forwards = ports, want
	m.mu.Unlock()
	if slices.Equal(old, want) {
		return nil
	}
	fw, err := m.firewall()
	if err == nil {
		err = fw.Swap(old, want)
	}
	if err != nil {
		m.mu.Lock()
		sb.ports, sb.forwards = before, old
		m.mu.Unlock()
		return err
	}
	m.forgetFlows(old, want)
	if len(want) > 0 {
		m.hairpin(sb)
	}
	return nil
}

// hairpin lets a container reach its own published ports also where br_netfilter
// translates addresses before the bridge sees them. Elsewhere it changes nothing.
func (m *Manager) hairpin(sb *sandbox) {
	for _, ep := range sb.endpoints {
		if ep.Device == "" {
			continue
		}
		l, err := m.root.ByName(ep.Device)
		if err == nil {
			err = m.root.Hairpin(l.Index)
		}
		if err != nil && !link.IsNotExist(err) {
			m.log.Warn("cannot let a container reach its own ports", "container", sb.id, "error", err)
		}
	}
}

// forgetFlows makes the kernel forget UDP flows to ports that are published no
// more: it would go on sending them to where they went.
func (m *Manager) forgetFlows(old, want []firewall.Forward) {
	done := map[netip.Addr]bool{}
	for _, f := range old {
		to := f.To.Addr()
		if f.Proto != unix.IPPROTO_UDP || slices.Contains(want, f) || done[to] {
			continue
		}
		done[to] = true
		if err := m.root.ForgetUDP(to); err != nil {
			m.log.Warn("cannot end UDP flows to an unpublished port", "address", to, "error", err)
		}
	}
}

// forwards says where ports lead: from the machine's addresses to the endpoint of the
// family that has the way out, unless its network is routed; and at the containers'
// own addresses, to all endpoints on routed networks. Called with mu held.
func (m *Manager) forwards(ports []Port, eps []Endpoint) []firewall.Forward {
	var out []firewall.Forward
	add := func(f firewall.Forward) {
		if !slices.Contains(out, f) { // several ports may lead to one
			out = append(out, f)
		}
	}
	for _, p := range ports {
		for _, w := range m.ways(eps) {
			// 0.0.0.0 and no address mean any; of the other family they mean nothing.
			if p.HostIP.IsValid() && p.HostIP.Unmap().Is4() != w.to.Is4() {
				continue
			}
			f := firewall.Forward{Proto: protocols[p.Proto], To: netip.AddrPortFrom(w.to, p.ContainerPort)}
			if w.direct {
				add(f)
			}
			if !w.translated || p.HostPort == 0 {
				continue
			}
			f.HostPort = p.HostPort
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				f.HostIP = p.HostIP.Unmap()
			}
			add(f)
		}
	}
	return out
}

// way is how published ports of a container are reached, at one of its addresses.
type way struct {
	to         netip.Addr
	translated bool // from the machine's addresses
	direct     bool // as it is, by those that the network lets through
	routed     bool // direct, and by everybody
}

// ways lists the ways to endpoints, IPv4 first. Called with mu held.
func (m *Manager) ways(eps []Endpoint) (out []way) {
	for _, v6 := range []bool{false, true} {
		taken := false
		for _, ep := range eps {
			p, gateway := ep.IPv4, ep.Gateway4
			if v6 {
				p, gateway = ep.IPv6, ep.Gateway6
			}
			n := m.networks[ep.NetworkID]
			if n == nil || ep.Device == "" || !p.IsValid() || !gateway.IsValid() {
				continue
			}
			w := way{to: p.Addr(), routed: n.def.routed(v6)}
			w.translated = !taken && !w.routed
			w.direct = w.routed || w.translated && len(n.def.trusted()) > 0
			taken = true
			if w.direct || w.translated {
				out = append(out, w)
			}
		}
	}
	return out
}

// Ways says how ports of a container are reached if they are published now.
func (m *Manager) Ways(containerID string) (w Ways) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if sb := m.sandboxes[containerID]; sb != nil {
		for _, by := range m.ways(sb.endpoints) {
			v4 := by.to.Is4()
			w.Translated4 = w.Translated4 || by.translated && v4
			w.Translated6 = w.Translated6 || by.translated && !v4
			w.Routed4 = w.Routed4 || by.routed && v4
			w.Routed6 = w.Routed6 || by.routed && !v4
		}
	}
	return w
}

// Address is where the machine itself reaches a container's published ports: its
// address on the bridge that comes first and leads out. ok is false when it has none
// (internal and routed networks, host, none, macvlan, ipvlan, not running).
func (m *Manager) Address(containerID string) (addr netip.Addr, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if sb := m.sandboxes[containerID]; sb != nil {
		for _, w := range m.ways(sb.endpoints) {
			if w.translated {
				return w.to, true
			}
		}
	}
	return netip.Addr{}, false
}

// conflicts reports whether p and o cannot both be published.
func (p Port) conflicts(o Port) bool {
	return p.Proto == o.Proto && p.HostPort == o.HostPort && p.HostPort != 0 &&
		(anyAddr(p.HostIP) && anyAddr(o.HostIP) || p.HostIP.Unmap() == o.HostIP.Unmap())
}

func anyAddr(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }

func (p Port) host() string {
	a := p.HostIP
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(a, p.HostPort).String()
}
