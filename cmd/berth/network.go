package main

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/usernet"
)

// newNetwork makes the machine's network. It asks the configured DNS servers, or
// the host's.
func newNetwork(c machine.Config, log *slog.Logger) func(context.Context) (daemon.Network, error) {
	return func(context.Context) (daemon.Network, error) {
		o := usernet.Options{Log: log}
		if servers := dnsServers(c); len(servers) > 0 {
			o.Servers = func() []netip.AddrPort { return servers }
		}
		n, err := usernet.New(o)
		if err != nil {
			return nil, err // not a nil *Network in an interface
		}
		return n, nil
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
