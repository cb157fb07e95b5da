package main

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/usernet"
)

// mtu of the guest's network card, in bytes.
const mtu = 1500

// cable is the user-mode network, with what the guest is told of it.
type cable struct{ *usernet.Network }

// Guest implements daemon.Network.
func (cable) Guest() wire.Network {
	return wire.Network{
		Address: netip.PrefixFrom(usernet.Guest, usernet.Subnet.Bits()).String(),
		Gateway: usernet.Gateway.String(),
		MTU:     mtu,
		DNS:     []string{usernet.Gateway.String()},
		Host:    usernet.Host.String(),
	}
}

// newNetwork makes the machine's network. It asks the configured DNS servers, or
// the host's.
func newNetwork(c machine.Config, log *slog.Logger) func(context.Context) (daemon.Network, error) {
	return func(context.Context) (daemon.Network, error) {
		o := usernet.Options{Log: log, MTU: mtu}
		if servers := dnsServers(c); len(servers) > 0 {
			o.Servers = func() []netip.AddrPort { return servers }
		}
		n, err := usernet.New(o)
		if err != nil {
			return nil, err
		}
		return cable{n}, nil
	}
}

func dnsServers(c machine.Config) []netip.AddrPort {
	var servers []netip.AddrPort
	for _, s := range c.DNS { // checked with the configuration
		if addr, err := netip.ParseAddr(s); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, 53))
		}
	}
	return servers
}
