//go:build linux

package link

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/berthvm/berth/guest/network/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestVethJoinsBridgeAndContainer(t *testing.T) {
	nstest.Require(t)
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.AddBridge(BridgeSpec{Name: "br0", MTU: 1400, MAC: MAC(netip.MustParseAddr("10.0.0.1"))}); err != nil {
		t.Fatal(err)
	}
	br, err := c.ByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	if br.Group != Group || br.MTU != 1400 || br.MAC.String() != "02:42:0a:00:00:01" || br.Type != "bridge" {
		t.Errorf("bridge: %+v", br)
	}
	ns, err := NewNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	addr := netip.MustParsePrefix("10.0.0.2/24")
	err = c.AddVeth(VethSpec{Name: "veth0", Bridge: br.Index, PeerName: "eth0", PeerMAC: MAC(addr.Addr()), PeerNS: ns, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.ByName("veth0"); err != nil || v.Master != br.Index || v.Group != Group || v.MTU != 1400 {
		t.Errorf("veth: %+v, %v", v, err)
	}
	in, err := ns.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	eth, err := in.ByName("eth0")
	if err != nil || eth.MAC.String() != "02:42:0a:00:00:02" || eth.MTU != 1400 {
		t.Fatalf("eth0: %+v, %v", eth, err)
	}
	if err := in.SetUp(eth.Index); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there already
		if err := in.AddAddr(eth.Index, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.SetDefault(eth.Index, false, netip.MustParseAddr("10.0.0.1"), false); err != nil {
		t.Fatal(err)
	}
	addrs, err := in.Addrs()
	if err != nil || len(addrs[eth.Index]) != 1 || addrs[eth.Index][0] != addr {
		t.Errorf("addresses: %v, %v (no IPv6 is expected)", addrs, err)
	}
	for range 2 {
		if err := in.DeleteDefault(false); err != nil {
			t.Error(err)
		}
		if err := c.Delete("veth0"); err != nil {
			t.Error(err)
		}
	}
	if _, err := in.ByName("eth0"); !IsNotExist(err) {
		t.Errorf("eth0 is still there: %v", err)
	}
	if err := c.Delete("br0"); err != nil {
		t.Error(err)
	}
}

func TestPin(t *testing.T) {
	nstest.Require(t)
	ns, err := NewNS()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ns")
	if err := ns.Pin(path); err != nil {
		t.Fatal(err)
	}
	if !Pinned(path) {
		t.Error("not pinned")
	}
	again, err := OpenNS(path)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Same(ns) {
		t.Error("the path leads elsewhere")
	}
	own, err := OpenNS(threadNS)
	if err != nil {
		t.Fatal(err)
	}
	if own.Same(ns) {
		t.Error("the test runs in the container's namespace")
	}
	own.Close()
	again.Close()
	ns.Close()
	for range 2 {
		if err := Unpin(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Error("the file is left")
	}
}

// TestOpenHalfUnpinned: a crash may come between Unpin's two steps.
func TestOpenHalfUnpinned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNS(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkNewNS(b *testing.B) {
	nstest.Require(b)
	for b.Loop() {
		ns, err := NewNS()
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}

func BenchmarkVeth(b *testing.B) {
	nstest.Require(b)
	c, err := Dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.AddBridge(BridgeSpec{Name: "br0", MTU: 1500})
	br, err := c.ByName("br0")
	if err != nil {
		b.Fatal(err)
	}
	c.SetUp(br.Index)
	ns, err := NewNS()
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	for b.Loop() {
		if err := c.AddVeth(VethSpec{Name: "veth0", Bridge: br.Index, PeerName: "eth0", PeerMAC: MAC(netip.MustParseAddr("1.2.3.4")), PeerNS: ns, MTU: 1500}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		c.Delete("veth0")
		b.StartTimer()
	}
}
