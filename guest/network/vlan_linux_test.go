package network

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/network/internal/link"
)

// needKinds skips a test where the kernel cannot make the interfaces it is about.
// The guest's can: make test-vm.
func needKinds(t *testing.T) {
	t.Helper()
	root, err := link.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	switch err := root.AddDummy("probe"); {
	case errors.Is(err, unix.EOPNOTSUPP):
		t.Skip("this kernel has no dummy, vlan, macvlan or ipvlan interfaces: run in a VM")
	case err != nil:
		t.Fatal(err)
	}
	if err := root.Delete("probe"); err != nil {
		t.Fatal(err)
	}
}

// TestOnParent: containers of one macvlan or ipvlan network reach each other, find
// each other by name, and have the outside where the parent leads to it.
func TestOnParent(t *testing.T) {
	for _, tc := range []struct {
		name    string
		driver  string
		options map[string]string
		apart   bool // the mode keeps containers from each other
		outside bool
		direct  bool
	}{
		{name: "macvlan", driver: DriverMacvlan, options: map[string]string{OptionParent: "eth0"}, outside: true},
		{name: "macvlan private", driver: DriverMacvlan, options: map[string]string{OptionParent: "eth0", OptionMacvlanMode: "private"}, apart: true, outside: true},
		{name: "macvlan without a parent", driver: DriverMacvlan},
		{name: "macvlan on a VLAN", driver: DriverMacvlan, options: map[string]string{OptionParent: "eth0.7"}},
		{name: "ipvlan", driver: DriverIPvlan, options: map[string]string{OptionParent: "eth0"}, outside: true},
		{name: "ipvlan l3", driver: DriverIPvlan, options: map[string]string{OptionParent: "eth0", OptionIPvlanMode: "l3"}, direct: true},
		{name: "ipvlan private", driver: DriverIPvlan, options: map[string]string{OptionParent: "eth0", OptionIPvlanFlag: "private"}, apart: true, outside: true},
		{name: "ipvlan without a parent", driver: DriverIPvlan},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			needKinds(t)
			gateway := netip.Addr{}
			if tc.outside {
				gateway = addr("192.0.2.1") // the world outside
			}
			_, err := m.Create(ctx, Config{Name: "lan", Driver: tc.driver, Options: tc.options,
				Subnets: []Subnet{{Subnet: pfx("192.0.2.0/24"), Range: pfx("192.0.2.64/26"), Gateway: gateway}}})
			m.must(err)
			a, b := m.container("a"), m.container("b")
			epA := a.attach(AttachRequest{Network: "lan"})
			epB := b.attach(AttachRequest{Network: "lan"})
			if epA.IPv4 != pfx("192.0.2.64/24") || epA.Gateway4 != gateway || epA.Direct != tc.direct || epA.Interface != "eth0" {
				t.Errorf("endpoint: %+v", epA)
			}
			if (tc.driver == DriverIPvlan) != (epA.MAC == "") {
				t.Errorf("MAC %q", epA.MAC)
			}
			serve(t, b.ns, 80)
			serve(t, m.outside, 80)
			from, err := dial(a.ns, "tcp", epB.IPv4.Addr().String()+":80")
			if (err == nil) == tc.apart || err == nil && from != "192.0.2.64" {
				t.Errorf("container to container: %q, %v", from, err)
			}
			if from, err := dial(a.ns, "tcp", "192.0.2.1:80"); (err == nil) != tc.outside || err == nil && from != "192.0.2.64" {
				t.Errorf("container to the world: %q, %v", from, err)
			}
			if addrs, ok := (zone{m.Manager, m.sandboxes[a.id]}).Lookup("b"); !ok || !slices.Equal(addrs, []netip.Addr{epB.IPv4.Addr()}) {
				t.Errorf("b is %v, %v", addrs, ok)
			}
			stats, err := m.Stats(a.id)
			if err != nil || len(stats) != 1 || stats[0].Interface != "eth0" || stats[0].TxPackets == 0 {
				t.Errorf("stats: %+v, %v", stats, err)
			}
			if got, ok := m.Address(a.id); ok {
				t.Errorf("the machine does not reach containers on its own interface, but has the address %v", got)
			}
			// A restart of the engine changes nothing, an end of the container all.
			m.must(m.Close())
			m.open()
			m.must(m.Restore(ctx, func(id string) bool { return true }))
			if from, err := dial(a.ns, "tcp", epB.IPv4.Addr().String()+":80"); (err == nil) == tc.apart {
				t.Errorf("after a restart: %q, %v", from, err)
			}
			m.must(m.Detach(ctx, a.id, "lan"))
			if _, err := dial(a.ns, "tcp", epB.IPv4.Addr().String()+":80"); err == nil {
				t.Error("the container is still connected")
			}
			m.must(m.Detach(ctx, b.id, "lan"))
		})
	}
}

// TestParents: interfaces that were made for a network go with the last network
// on them, others stay.
func TestParents(t *testing.T) {
	m := newMachine(t)
	needKinds(t)
	on := func(parent string) map[string]string { return map[string]string{OptionParent: parent} }
	create := func(name, driver string, options map[string]string) {
		t.Helper()
		_, err := m.Create(ctx, Config{Name: name, Driver: driver, Options: options})
		m.must(err)
	}
	exists := func(name string) bool {
		_, err := m.root.ByName(name)
		return err == nil
	}
	create("one", DriverMacvlan, on("eth0.10"))
	create("two", DriverMacvlan, on("eth0.10"))
	if _, err := m.Create(ctx, Config{Name: "three", Driver: DriverMacvlan, Options: map[string]string{OptionParent: "eth0.10", OptionMacvlanMode: "passthru"}}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("passthru beside others: %v", err)
	}
	if one, _ := m.Get("one"); one.Subnets[0].Subnet != pfx("10.0.0.0/24") || one.Subnets[0].Gateway.IsValid() {
		t.Errorf("chosen subnets: %+v", one.Subnets)
	}
	m.must(m.Remove(ctx, "one"))
	if !exists("eth0.10") {
		t.Error("the VLAN went while a network was on it")
	}
	// A reboot takes all interfaces away; the first container brings them back.
	m.must(m.root.Delete("eth0.10"))
	c := m.container("c", "two")
	if !exists("eth0.10") {
		t.Error("the VLAN did not come back")
	}
	m.must(m.Detach(ctx, c.id, "two"))
	m.must(m.Remove(ctx, "two"))
	if exists("eth0.10") || !exists("eth0") {
		t.Error("want the VLAN gone and its parent there")
	}
	create("four", DriverIPvlan, nil)
	four, _ := m.Get("four")
	if !exists(four.Parent) {
		t.Errorf("no %s", four.Parent)
	}
	m.must(m.Remove(ctx, "four"))
	if exists(four.Parent) {
		t.Errorf("%s is left", four.Parent)
	}
}

// TestSharedSubnet: networks with one subnet in common never hand out an address
// twice.
func TestSharedSubnet(t *testing.T) {
	m := newMachine(t)
	needKinds(t)
	for name, r := range map[string]string{"one": "10.9.0.0/25", "two": "10.9.0.0/24"} {
		_, err := m.Create(ctx, Config{Name: name, Driver: DriverMacvlan, Subnets: []Subnet{{Subnet: pfx("10.9.0.0/24"), Range: pfx(r)}}})
		m.must(err)
	}
	if _, err := m.Create(ctx, Config{Name: "x", Driver: DriverMacvlan, Subnets: []Subnet{{Subnet: pfx("10.9.0.0/16")}}}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("an overlapping subnet: %v", err)
	}
	a, b := m.container("a"), m.container("b")
	for i, want := range []string{"10.9.0.1/24", "10.9.0.2/24"} {
		if ep := []*container{a, b}[i].attach(AttachRequest{Network: []string{"one", "two"}[i]}); ep.IPv4 != pfx(want) {
			t.Errorf("%v, want %s", ep.IPv4, want)
		}
	}
}

// TestNoAddresses: a macvlan network may leave addressing to whatever is outside.
func TestNoAddresses(t *testing.T) {
	m := newMachine(t)
	needKinds(t)
	_, err := m.Create(ctx, Config{Name: "bare", Driver: DriverMacvlan, NoIPv4: true})
	m.must(err)
	if ep := m.container("a").attach(AttachRequest{Network: "bare"}); ep.IPv4.IsValid() || ep.IPv6.IsValid() || ep.MAC == "" {
		t.Errorf("endpoint: %+v", ep)
	}
	if _, err := m.Attach(ctx, AttachRequest{ContainerID: "b", Network: "bare", NetNS: "/nowhere"}); err == nil {
		t.Error("attached to a namespace that is not there")
	}
}
