package network

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzDefine: whatever a client asks for, a network that comes of it is sound.
func FuzzDefine(f *testing.F) {
	f.Add("n", "bridge", "10.1.0.0/16", "10.1.5.0/24", "10.1.5.254", "10.1.5.9", OptionMTU+"=1400", true, false)
	f.Add("n", "macvlan", "0.0.0.0/24", "", "", "", "parent=eth0.10", false, true)
	f.Add("n", "ipvlan", "fd00::/64", "fd00::/80", "fd00::1", "", "ipvlan_mode=l3", true, true)
	site, taken := pfx("fd12:3456:789a::/48"), []netip.Prefix{pfx("172.17.0.0/16")}
	f.Fuzz(func(t *testing.T, name, driver, subnet, within, gateway, aux, option string, v6, internal bool) {
		key, value, _ := strings.Cut(option, "=")
		cfg := Config{Name: name, Driver: driver, IPv6: v6, Internal: internal, Options: map[string]string{key: value}}
		var s Subnet
		s.Subnet, _ = netip.ParsePrefix(subnet)
		s.Range, _ = netip.ParsePrefix(within)
		s.Gateway, _ = netip.ParseAddr(gateway)
		if a, err := netip.ParseAddr(aux); err == nil {
			s.Aux = map[string]netip.Addr{"a": a}
		}
		cfg.Subnets = []Subnet{s}
		n, err := define(cfg, 1500, taken, nil, site)
		if err != nil {
			return
		}
		for i, s := range n.Subnets {
			switch {
			case s.Subnet != s.Subnet.Masked(), s.Gateway.IsValid() && !s.Subnet.Contains(s.Gateway),
				s.Range.IsValid() && !s.Subnet.Overlaps(s.Range):
				t.Errorf("subnet %+v", s)
			case n.Driver == DriverBridge && overlaps(s.Subnet, taken):
				t.Errorf("%s is taken", s.Subnet)
			}
			for _, o := range n.Subnets[:i] {
				if o.Subnet.Overlaps(s.Subnet) && n.Driver == DriverBridge {
					t.Errorf("%s and %s overlap", o.Subnet, s.Subnet)
				}
			}
		}
		if n.Device != "" && !ifName(n.Device) || n.Parent != "" && !ifName(n.Parent) {
			t.Errorf("interfaces %q and %q", n.Device, n.Parent)
		}
		m := &Manager{networks: map[string]*network{}}
		if err := m.addNetwork(n); err != nil {
			return
		}
		ep := Endpoint{}
		if err := m.networks[n.ID].allocate(&ep, AttachRequest{}); err == nil {
			if err := ep.setMAC(n.Driver, ""); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestDefine(t *testing.T) {
	site := pfx("fd12:3456:789a::/48")
	for _, tc := range []struct {
		name string
		cfg  Config
		want string // subnets with gateways, or part of the error
	}{
		{"chosen", Config{}, "172.18.0.0/16 172.18.0.1"},
		{"both families", Config{IPv6: true}, "172.18.0.0/16 172.18.0.1, fd12:3456:789a::/64 fd12:3456:789a::1"},
		{"gateway in the range", Config{Subnets: []Subnet{{Subnet: pfx("10.1.0.0/16"), Range: pfx("10.1.5.0/24")}}}, "10.1.0.0/16 10.1.5.0"},
		{"a size", Config{Subnets: []Subnet{{Subnet: pfx("0.0.0.0/24")}}}, "172.18.0.0/24 172.18.0.1"},
		{"a family that is off", Config{Subnets: []Subnet{{Subnet: pfx("fd00::/64")}}}, "172.18.0.0/16 172.18.0.1"},
		{"isolated", Config{Internal: true, Options: map[string]string{OptionMode4: "isolated"}}, "172.18.0.0/16 invalid IP"},
		{"isolated and not internal", Config{Options: map[string]string{OptionMode4: "isolated"}}, "can only be used for an internal network"},
		{"inhibited", Config{Options: map[string]string{OptionInhibit4: "true"}}, "172.18.0.0/16 172.18.0.1"},
		{"a bad mode", Config{Options: map[string]string{OptionMode6: "x"}}, "failed to parse " + OptionMode6 + " value: x"},
		{"IPv6 first", Config{IPv6: true, Subnets: []Subnet{{Subnet: pfx("fd00::/64")}, {Subnet: pfx("10.1.0.0/16")}}},
			"10.1.0.0/16 10.1.0.1, fd00::/64 fd00::1"},
		{"around the uplink", Config{Subnets: []Subnet{{Subnet: pfx("192.168.0.0/16"), Range: pfx("192.168.96.0/19")}}}, "192.168.0.0/16 192.168.96.0"},
		{"the uplink", Config{Subnets: []Subnet{{Subnet: pfx("192.168.127.0/24")}}}, "Pool overlaps with 192.168.127.0/24, by which"},
		{"in the uplink", Config{Subnets: []Subnet{{Subnet: pfx("192.168.127.128/25")}}}, "Pool overlaps with 192.168.127.0/24, by which"},
		{"a gateway in the uplink", Config{Subnets: []Subnet{{Subnet: pfx("192.168.0.0/16"), Gateway: addr("192.168.127.1")}}}, "Pool overlaps with 192.168.127.0/24"},
		{"a range in the uplink", Config{Subnets: []Subnet{{Subnet: pfx("192.168.0.0/16"), Range: pfx("192.168.127.128/25")}}}, "Pool overlaps with 192.168.127.0/24"},
		{"macvlan", Config{Driver: DriverMacvlan}, "10.0.0.0/24 invalid IP"},
		{"all that is wrong", Config{Subnets: []Subnet{{Subnet: pfx("10.1.0.1/16"), Gateway: addr("10.2.0.1"), Range: pfx("10.0.0.0/8")}}},
			"invalid network config:\n* invalid subnet 10.1.0.1/16: it should be 10.1.0.0/16\n" +
				"* invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.1.0.1/16\n" +
				"* invalid gateway 10.2.0.1: parent subnet 10.1.0.1/16 doesn't contain this address"},
	} {
		tc.cfg.Name = "n"
		n, err := define(tc.cfg, 1500, []netip.Prefix{pfx("172.17.0.0/16")}, []netip.Prefix{pfx("192.168.127.2/24")}, site)
		var got []string
		for _, s := range n.Subnets {
			got = append(got, s.Subnet.String()+" "+s.Gateway.String())
		}
		text := strings.Join(got, ", ")
		if err != nil {
			text = err.Error()
		}
		if err == nil && text != tc.want || !strings.Contains(text, tc.want) {
			t.Errorf("%s: %s\nwant %s", tc.name, text, tc.want)
		}
	}
}

// TestConfigFrom: a network has the settings of the one it names, and none of its
// own.
func TestConfigFrom(t *testing.T) {
	source, err := defineConfigOnly(Config{Name: "c", IPv6: true, Options: map[string]string{OptionMTU: "1400"}, Labels: map[string]string{"a": "b"}})
	if err != nil || !source.ConfigOnly || source.Driver != DriverNull {
		t.Fatalf("%+v, %v", source, err)
	}
	cfg, err := Config{Name: "n", ConfigFrom: "c"}.from(source)
	if err != nil || !cfg.IPv6 || cfg.Options[OptionMTU] != "1400" || cfg.Labels["a"] != "b" {
		t.Errorf("%+v, %v", cfg, err)
	}
	for _, bad := range []Config{{IPv6: true}, {NoIPv4: true}, {Labels: map[string]string{"x": ""}}, {Options: map[string]string{"x": ""}}} {
		if _, err := bad.from(source); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, bad := range []Config{{Name: "c", Internal: true}, {Name: "c", ConfigFrom: "d"}, {Name: "bridge"}, {}} {
		if _, err := defineConfigOnly(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
