package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
	"github.com/berthvm/berth/guest/network/internal/resolver"
)

// dnsServer answers at 127.0.0.11 in one container.
type dnsServer struct{ *resolver.Server }

// settleDNS starts or stops the container's DNS server. Called with op held.
func (m *Manager) settleDNS(sb *sandbox) error {
	need := slices.ContainsFunc(sb.endpoints, func(ep Endpoint) bool {
		return ep.Interface != "" && ep.NetworkName != Bridge
	})
	switch {
	case !need:
		sb.stopDNS()
		return nil
	case sb.dns != nil:
		return nil
	}
	ns, err := link.OpenNS(sb.netns)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the container has ended
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	var pc net.PacketConn
	var ln net.Listener
	err = ns.Do(func() (err error) {
		if pc, err = net.ListenPacket("udp4", netip.AddrPortFrom(EmbeddedDNS, 0).String()); err != nil {
			return err
		}
		if ln, err = net.Listen("tcp4", netip.AddrPortFrom(EmbeddedDNS, 0).String()); err != nil {
			pc.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot start the container's DNS server: %w", err)
	}
	udp, tcp := pc.LocalAddr().(*net.UDPAddr), ln.Addr().(*net.TCPAddr)
	if err := firewall.RedirectDNS(ns.FD(), EmbeddedDNS, uint16(udp.Port), uint16(tcp.Port)); err != nil {
		pc.Close()
		ln.Close()
		return err
	}
	sb.dns = &dnsServer{resolver.Serve(zone{m, sb}, m.log, pc, ln)}
	return nil
}

func (sb *sandbox) stopDNS() {
	if sb.dns != nil {
		sb.dns.Close()
		sb.dns = nil
	}
}

// zone is what one container can resolve.
type zone struct {
	m  *Manager
	sb *sandbox
}

// Lookup implements resolver.Zone: links first, then the names on each of the
// container's networks, which may carry the network's name: "db" or "db.net".
func (z zone) Lookup(name string) (addrs []netip.Addr, found bool) {
	z.m.mu.RLock()
	defer z.m.mu.RUnlock()
	for _, own := range z.sb.endpoints {
		if own.NetworkName == Bridge {
			continue
		}
		want := strings.TrimSuffix(name, "."+strings.ToLower(own.NetworkName))
		for alias, target := range own.Links {
			if strings.EqualFold(alias, want) {
				want = target
			}
		}
		for _, ep := range z.m.on(own.NetworkID) {
			if !slices.ContainsFunc(ep.Names, func(n string) bool { return strings.EqualFold(n, want) }) {
				continue
			}
			found = true
			for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
				if p.IsValid() {
					addrs = append(addrs, p.Addr())
				}
			}
		}
		if found {
			return addrs, true
		}
	}
	return nil, false
}

// Reverse implements resolver.Zone.
func (z zone) Reverse(addr netip.Addr) (name string, found bool) {
	z.m.mu.RLock()
	defer z.m.mu.RUnlock()
	for _, own := range z.sb.endpoints {
		if own.NetworkName == Bridge {
			continue
		}
		for _, ep := range z.m.on(own.NetworkID) {
			if (ep.IPv4.Addr() == addr || ep.IPv6.Addr() == addr) && len(ep.Names) > 0 {
				return ep.Names[0] + "." + own.NetworkName, true
			}
		}
	}
	return "", false
}

// Upstream implements resolver.Zone. A container on internal networks only gets
// no answers from outside.
func (z zone) Upstream() []netip.AddrPort {
	z.m.mu.RLock()
	defer z.m.mu.RUnlock()
	if !slices.ContainsFunc(z.sb.endpoints, func(ep Endpoint) bool {
		n := z.m.networks[ep.NetworkID]
		return n != nil && !n.def.isolated()
	}) {
		return nil
	}
	servers := z.sb.upstream
	if len(servers) == 0 {
		servers = z.m.opts.DNS
	}
	out := make([]netip.AddrPort, len(servers))
	for i, s := range servers {
		out[i] = netip.AddrPortFrom(s, 53)
	}
	return out
}

// on returns the endpoints on a network. Called with mu held.
func (m *Manager) on(networkID string) []*Endpoint {
	var out []*Endpoint
	for _, sb := range m.sandboxes {
		for i := range sb.endpoints {
			if sb.endpoints[i].NetworkID == networkID {
				out = append(out, &sb.endpoints[i])
			}
		}
	}
	return out
}
