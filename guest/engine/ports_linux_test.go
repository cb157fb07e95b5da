package engine

import (
	"net/netip"
	"slices"
	"testing"

	apinet "github.com/moby/moby/api/types/network"

	"github.com/berthvm/berth/guest/engine/settings"
	"github.com/berthvm/berth/guest/network"
)

// TestWays: where a port is published depends on how its container's networks are
// left, family by family.
func TestWays(t *testing.T) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	none, one4, one6 := netip.Addr{}, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, tc := range []struct {
		name   string
		ways   network.Ways
		asked  netip.Addr
		host   bool       // published there
		at     netip.Addr // at this address
		direct []netip.Addr
	}{
		{"plain", network.Ways{Translated4: true}, none, true, none, nil},
		{"plain, an IPv6 address of the host's", network.Ways{Translated4: true}, one6, true, one6, nil},
		{"IPv6 only", network.Ways{Translated6: true}, none, true, none, nil},
		{"routed", network.Ways{Routed4: true, Routed6: true}, none, false, none, []netip.Addr{any4, any6}},
		{"routed, one family asked for", network.Ways{Routed4: true, Routed6: true}, one6, false, none, []netip.Addr{any6}},
		{"routed IPv4 without IPv6", network.Ways{Routed4: true}, none, false, none, []netip.Addr{any4}},
		{"routed IPv4", network.Ways{Routed4: true, Translated6: true}, none, true, any6, []netip.Addr{any4}},
		{"routed IPv4, asked for", network.Ways{Routed4: true, Translated6: true}, one4, false, none, []netip.Addr{any4}},
		{"routed IPv6", network.Ways{Translated4: true, Routed6: true}, none, true, any4, []netip.Addr{any6}},
		{"routed IPv6, asked for", network.Ways{Translated4: true, Routed6: true}, one6, false, none, []netip.Addr{any6}},
		{"two networks", network.Ways{Translated4: true, Routed4: true}, none, true, none, []netip.Addr{any4}},
		{"no way", network.Ways{}, none, false, none, nil},
	} {
		w := settings.Port{Port: apinet.MustParsePort("80/tcp"), HostIP: tc.asked}
		var direct []netip.Addr
		for _, p := range routedPorts(w, tc.ways) {
			direct = append(direct, p.hostIP)
		}
		host := translated(&w, fromHost(tc.ways))
		if host != tc.host || host && w.HostIP != tc.at || !slices.Equal(direct, tc.direct) {
			t.Errorf("%s: on the host %v at %v, directly %v; want %v at %v, %v", tc.name, host, w.HostIP, direct, tc.host, tc.at, tc.direct)
		}
	}
}
