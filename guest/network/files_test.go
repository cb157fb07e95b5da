package network

import (
	"net/netip"
	"testing"
)

func TestHosts(t *testing.T) {
	const common = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	eps := []Endpoint{
		{IPv4: netip.MustParsePrefix("172.17.0.2/16")},
		{IPv4: netip.MustParsePrefix("172.18.0.2/16"), IPv6: netip.MustParsePrefix("fd00::2/64")},
		{}, // none
	}
	extra := []HostEntry{{netip.MustParseAddr("10.0.0.1"), []string{"db", "database"}}}
	for _, tc := range []struct {
		host, domain string
		eps          []Endpoint
		extra        []HostEntry
		want         string
	}{
		{"", "", nil, nil, ""},
		{"box", "", eps[:1], nil, "172.17.0.2\tbox\n"},
		{"box", "corp.test", eps[:1], extra, "10.0.0.1\tdb database\n172.17.0.2\tbox.corp.test box\n"},
		{"box.corp.test", "", eps[:1], nil, "172.17.0.2\tbox.corp.test box\n"},
		{"box", "", eps, nil, "172.17.0.2\tbox\n172.18.0.2\tbox\nfd00::2\tbox\n"},
	} {
		if got := string(Hosts(tc.host, tc.domain, true, tc.eps, tc.extra)); got != common+tc.want {
			t.Errorf("%+v:\n%s", tc, got)
		}
	}
	if got := string(Hosts("box", "", false, eps[:1], nil)); got != "127.0.0.1\tlocalhost\n172.17.0.2\tbox\n" {
		t.Errorf("without IPv6:\n%s", got)
	}
}

func TestHostsLike(t *testing.T) {
	extra := []HostEntry{{netip.MustParseAddr("10.0.0.1"), []string{"db", "database"}}}
	for _, tc := range []struct {
		machine string
		extra   []HostEntry
		want    string
	}{
		{"127.0.0.1 localhost box\n", nil, "127.0.0.1 localhost box\n"},
		{"127.0.0.1 localhost", extra, "127.0.0.1 localhost\n10.0.0.1\tdb database\n"},
		{"", extra, "10.0.0.1\tdb database\n"},
	} {
		if got := string(HostsLike([]byte(tc.machine), tc.extra)); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.machine, got, tc.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.53"), netip.MustParseAddr("1.2.3.4")
	machine := []netip.Addr{a}
	for _, tc := range []struct {
		cfg      DNSConfig
		embedded bool
		want     string
	}{
		{DNSConfig{}, false, "nameserver 10.0.0.53\n"},
		{DNSConfig{Servers: []netip.Addr{b}}, false, "nameserver 1.2.3.4\n"},
		{DNSConfig{}, true, "nameserver 127.0.0.11\noptions ndots:0\n"},
		{DNSConfig{Servers: []netip.Addr{b}, Options: []string{"ndots:2", "rotate"}}, true, "nameserver 127.0.0.11\noptions ndots:2 rotate\n"},
		{DNSConfig{Search: []string{"a.test", "b.test"}}, false, "nameserver 10.0.0.53\nsearch a.test b.test\n"},
		{DNSConfig{Search: []string{"."}}, false, "nameserver 10.0.0.53\n"},
	} {
		if got := string(ResolvConf(tc.cfg, machine, tc.embedded)); got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.cfg, got, tc.want)
		}
	}
}
