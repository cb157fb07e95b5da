package network

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseSysctls(t *testing.T) {
	for list, want := range map[string][]sysctl{
		"":                                    nil,
		"net.ipv4.conf.IFNAME.log_martians=1": {{"ipv4", "conf", "log_martians", "1"}},
		"net.ipv6.conf.ifname.forwarding=0,net.ipv4.neigh.IFNAME.locktime=a=b": {
			{"ipv6", "conf", "forwarding", "0"}, {"ipv4", "neigh", "locktime", "a=b"}},
	} {
		got, err := parseSysctls(list)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{
		"x", "net.ipv4.conf.eth0.forwarding=1", "net.ipv4.conf.IFNAME.forwarding", "net.core.conf.IFNAME.x=1",
		"net.ipv4.conf.IFNAME.a.b=1", "net.ipv4./../..IFNAME.x=1", "net.ipv4.conf.IFNAME.=1", "net.ipv4.conf.IFNAME.x=1,",
	} {
		if got, err := parseSysctls(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}

// FuzzSysctls: no setting leads out of its place.
func FuzzSysctls(f *testing.F) {
	f.Add("net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.ifname.x=")
	f.Fuzz(func(t *testing.T, list string) {
		got, err := parseSysctls(list)
		if err != nil {
			return
		}
		for _, s := range got {
			p := s.path("eth0")
			if strings.Count(p, "/") != 3 || !strings.Contains(p, "/eth0/") || strings.Contains(p, "..") && strings.Contains(p, "/../") {
				t.Errorf("%q leads to %q", list, p)
			}
		}
	})
}

func TestCheckEndpointOptions(t *testing.T) {
	for name, ok := range map[string]bool{"foobar": true, "eth1": true, "": false, "..": false, "a/b": false, "lo": false, "sixteen-letters-": false} {
		if err := CheckEndpointOptions(map[string]string{OptionIfname: name}); (err == nil) != ok {
			t.Errorf("interface name %q: %v", name, err)
		}
	}
}
