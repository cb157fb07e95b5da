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
// default route when networks come and go. Port's HostPort must not be zero. The
// error is errdefs' Conflict when another container has a port already.
func (m *Manager) Publish(ctx context.Context, containerID string, ports []Port) error {
	if !validID(containerID) {
		return invalid("invalid container ID %q", containerID)
	}
	for _, p := range ports {
		if _, ok := protocols[p.Proto]; !ok {
			return invalid("invalid protocol %q: tcp, udp or sctp is expected", p.Proto)
		}
		if p.HostPort == 0 || p.ContainerPort == 0 {
			return errors.New("a published port needs its numbers")
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
	want := forwards(ports, sb.endpoints)
	m.mu.Lock()
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

// forwards says where ports lead: to the first endpoint of the family that has a
// way out.
func forwards(ports []Port, eps []Endpoint) []firewall.Forward {
	var to [2]netip.Addr
	for _, ep := range eps {
		for i, f := range []struct {
			p  netip.Prefix
			gw netip.Addr
		}{{ep.IPv4, ep.Gateway4}, {ep.IPv6, ep.Gateway6}} {
			if ep.Device != "" && f.p.IsValid() && f.gw.IsValid() && !to[i].IsValid() {
				to[i] = f.p.Addr()
			}
		}
	}
	var out []firewall.Forward
	for _, p := range ports {
		for _, a := range to {
			// 0.0.0.0 and no address mean any; of the other family they mean nothing.
			if !a.IsValid() || (p.HostIP.IsValid() && p.HostIP.Unmap().Is4() != a.Is4()) {
				continue
			}
			f := firewall.Forward{Proto: protocols[p.Proto], HostPort: p.HostPort, To: netip.AddrPortFrom(a, p.ContainerPort)}
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				f.HostIP = p.HostIP.Unmap()
			}
			out = append(out, f)
		}
	}
	return out
}

// conflicts reports whether p and o cannot both be published.
func (p Port) conflicts(o Port) bool {
	return p.Proto == o.Proto && p.HostPort == o.HostPort &&
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
