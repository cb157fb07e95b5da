package ipam

import (
	"errors"
	"net/netip"
	"testing"
)

var pfx = netip.MustParsePrefix

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestAllocate(t *testing.T) {
	type step struct {
		want, got string
		err       error
	}
	for _, tc := range []struct {
		name           string
		subnet, within string
		reserved       []string
		steps          []step
	}{
		{"docker0", "172.17.0.0/16", "", []string{"172.17.0.1"}, []step{
			{got: "172.17.0.2"}, {got: "172.17.0.3"},
			{want: "172.17.0.9", got: "172.17.0.9"},
			{want: "172.17.0.9", err: ErrTaken},
			{want: "172.17.0.1", err: ErrTaken},
			{want: "172.17.255.255", err: ErrTaken},
			{want: "172.18.0.2", err: ErrOutside},
			{got: "172.17.0.4"},
		}},
		{"full", "10.0.0.0/30", "", []string{"10.0.0.1"}, []step{{got: "10.0.0.2"}, {err: ErrFull}, {err: ErrFull}}},
		{"range", "10.1.0.0/16", "10.1.5.0/30", []string{"10.1.0.1"}, []step{
			{got: "10.1.5.0"}, {got: "10.1.5.1"}, {got: "10.1.5.2"}, {got: "10.1.5.3"}, {err: ErrFull},
			{want: "10.1.9.9", got: "10.1.9.9"},
		}},
		{"end of all addresses", "255.255.255.254/31", "", nil, []step{{got: "255.255.255.255"}, {err: ErrFull}}},
		{"v6", "fd00::/64", "", []string{"fd00::1"}, []step{{got: "fd00::2"}, {want: "fd00::5", got: "fd00::5"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var within netip.Prefix
			if tc.within != "" {
				within = pfx(tc.within)
			}
			var res []netip.Addr
			for _, r := range tc.reserved {
				res = append(res, addr(r))
			}
			p, err := NewPool(pfx(tc.subnet), within, res...)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range tc.steps {
				got, err := p.Allocate(addr(s.want))
				if !errors.Is(err, s.err) || got != addr(s.got) {
					t.Fatalf("step %d: %v, %v; want %v, %v", i, got, err, s.got, s.err)
				}
			}
		})
	}
}

func TestReleaseReusesLowest(t *testing.T) {
	p, err := NewPool(pfx("10.0.0.0/24"), netip.Prefix{}, addr("10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.Allocate(netip.Addr{})
	}
	p.Release(addr("10.0.0.3"))
	if got, err := p.Allocate(netip.Addr{}); got != addr("10.0.0.3") || err != nil {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestRangeOutsideSubnet(t *testing.T) {
	for _, r := range []string{"10.1.0.0/24", "10.0.0.0/8", "fd00::/64"} {
		if _, err := NewPool(pfx("10.0.0.0/16"), pfx(r)); err == nil {
			t.Errorf("range %s was accepted", r)
		}
	}
}

func TestChoose(t *testing.T) {
	taken := []netip.Prefix{pfx("172.17.0.0/16"), pfx("172.18.4.0/24"), pfx("172.16.0.0/15")}
	if got, err := Choose4(taken); got != pfx("172.19.0.0/16") || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	taken = []netip.Prefix{pfx("172.16.0.0/12"), pfx("192.168.0.0/20")}
	if got, err := Choose4(taken); got != pfx("192.168.16.0/20") || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Choose4([]netip.Prefix{pfx("0.0.0.0/0")}); err == nil {
		t.Error("chose a subnet where none was free")
	}
	if got, err := Choose6(pfx("fd12:3456:789a::/48"), []netip.Prefix{pfx("fd12:3456:789a::/63")}); got != pfx("fd12:3456:789a:2::/64") || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestLast(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.0/8": "10.255.255.255", "10.0.0.5/32": "10.0.0.5", "192.168.1.64/26": "192.168.1.127", "fd00::/126": "fd00::3"} {
		if got := Last(pfx(in)); got != addr(want) {
			t.Errorf("Last(%s) = %v, want %s", in, got, want)
		}
	}
}
