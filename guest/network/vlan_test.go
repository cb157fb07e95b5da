package network

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseVLAN(t *testing.T) {
	for _, tc := range []struct {
		name, parent string
		id           int
		want         string
	}{
		{"eth0.10", "eth0", 10, ""},
		{"eth0.4094", "eth0", 4094, ""},
		{"eth0", "", 0, "example formatting is eth0.10"},
		{"eth0.1.2", "", 0, "required interface name format"},
		{".1", "", 0, "required interface name format"},
		{"eth0.", "", 0, "unable to parse a valid vlan id"},
		{"eth0.x", "", 0, "unable to parse a valid vlan id"},
		{"eth0.0", "", 0, "vlan id must be between 1-4094"},
		{"eth0.4095", "", 0, "vlan id must be between 1-4094"},
	} {
		parent, id, err := parseVLAN(tc.name)
		if parent != tc.parent || id != tc.id || (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %d, %v", tc.name, parent, id, err)
		}
	}
}

func FuzzParseVLAN(f *testing.F) {
	f.Add("eth0.10")
	f.Add("a.+1")
	f.Fuzz(func(t *testing.T, name string) {
		parent, id, err := parseVLAN(name)
		if err == nil && (parent == "" || id < 1 || id > 4094 || !strings.HasPrefix(name, parent+".")) {
			t.Errorf("%q: %q, %d", name, parent, id)
		}
	})
}

// TestParentConflict: who may sit on one interface.
func TestParentConflict(t *testing.T) {
	network := func(driver, mode string) Network {
		n := Network{ID: strings.Repeat("0", 64), Name: "other", Driver: driver, Options: map[string]string{OptionParent: "eth0"}}
		if mode != "" {
			n.Options[driver+"_mode"] = mode
		}
		if err := n.applyParent(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, tc := range []struct{ a, b, want string }{
		{"macvlan", "macvlan", ""},
		{"macvlan bridge", "macvlan private", ""},
		{"macvlan passthru", "macvlan", "cannot use mode passthru"},
		{"macvlan", "macvlan passthru", "in mode passthru"},
		{"ipvlan l3", "ipvlan l2", "is already using parent interface eth0"},
		{"ipvlan", "macvlan", "either macvlan or ipvlan"},
	} {
		var driver, mode [2]string
		fmt.Sscan(tc.a, &driver[0], &mode[0])
		fmt.Sscan(tc.b, &driver[1], &mode[1])
		err := network(driver[0], mode[0]).parentConflict(network(driver[1], mode[1]))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s beside %s: %v", tc.a, tc.b, err)
		}
	}
}
