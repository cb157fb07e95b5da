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
		{"end of all addresses", "255.255.255.254/31", "", nil, []step{{got: "255.255.255.254"}, {got: "255.255.255.255"}, {err: ErrFull}}},
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
	site := pfx("fd12:3456:789a::/48")
	for _, tc := range []struct {
		name string
		r    Request
		want string
		err  error
	}{
		{"local", Request{Taken: []netip.Prefix{pfx("172.17.0.0/16"), pfx("172.18.4.0/24"), pfx("172.16.0.0/15")}}, "172.19.0.0/16", nil},
		{"second range", Request{Taken: []netip.Prefix{pfx("172.16.0.0/12"), pfx("192.168.0.0/20")}}, "192.168.16.0/20", nil},
		{"none free", Request{Taken: []netip.Prefix{pfx("0.0.0.0/0")}}, "", ErrFull},
		{"global", Request{Global: true, Taken: []netip.Prefix{pfx("10.0.0.0/23")}}, "10.0.2.0/24", nil},
		{"of a length", Request{Bits: 24, Taken: []netip.Prefix{pfx("172.17.0.0/16")}}, "172.18.0.0/24", nil},
		{"no such length", Request{Bits: 8}, "", ErrSize},
		{"IPv6", Request{Site: site, Taken: []netip.Prefix{pfx("fd12:3456:789a::/63")}}, "fd12:3456:789a:2::/64", nil},
		{"IPv6 of a length", Request{Site: site, Bits: 80}, "fd12:3456:789a::/80", nil},
	} {
		got, err := Choose(tc.r)
		if !errors.Is(err, tc.err) || tc.want != "" && got != pfx(tc.want) {
			t.Errorf("%s: got %v, %v; want %s, %v", tc.name, got, err, tc.want, tc.err)
		}
	}
}

// TestShare: what one pool of a subnet hands out, no other does.
func TestShare(t *testing.T) {
	a, err := NewPool(pfx("192.168.0.0/24"), pfx("192.168.0.0/25"), addr("192.168.0.1"), addr("192.168.0.100"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Share(netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Share(netip.Prefix{}, addr("192.168.0.9"), addr("192.168.0.1")); !errors.Is(err, ErrTaken) {
		t.Errorf("a second gateway with the address of the first: %v", err)
	}
	check := func(p *Pool, inUse, available uint64) {
		t.Helper()
		if u, f := p.Usage(); u != inUse || f != available {
			t.Errorf("in use %d, available %d; want %d, %d", u, f, inUse, available)
		}
	}
	check(a, 4, 125)
	check(b, 4, 252)
	for _, want := range []string{"192.168.0.2", "192.168.0.3"} {
		if got, _ := a.Allocate(netip.Addr{}); got != addr(want) {
			t.Errorf("got %v, want %s", got, want)
		}
		a, b = b, a
	}
	check(a, 6, 123)
	a.Close()
	check(b, 4, 252)
}

func TestUsage(t *testing.T) {
	for subnet, want := range map[string][2]uint64{
		"10.0.0.0/30": {2, 2}, "10.0.0.0/31": {0, 2}, "fd00::/120": {1, 255}, "fd00::/64": {1, 1<<64 - 1}, "fd00::/48": {1, 1<<64 - 1},
	} {
		p, err := NewPool(pfx(subnet), netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		if inUse, free := p.Usage(); inUse != want[0] || free != want[1] {
			t.Errorf("%s: %d in use, %d available; want %v", subnet, inUse, free, want)
		}
	}
}

func TestGateway(t *testing.T) {
	for _, tc := range []struct{ subnet, within, want string }{
		{"10.0.0.0/24", "", "10.0.0.1"}, {"10.0.0.0/16", "10.0.5.0/24", "10.0.5.0"}, {"10.0.0.0/16", "10.0.0.0/24", "10.0.0.1"}, {"fd00::/64", "", "fd00::1"},
	} {
		var within netip.Prefix
		if tc.within != "" {
			within = pfx(tc.within)
		}
		if got := Gateway(pfx(tc.subnet), within); got != addr(tc.want) {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestLast(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.0/8": "10.255.255.255", "10.0.0.5/32": "10.0.0.5", "192.168.1.64/26": "192.168.1.127", "fd00::/126": "fd00::3"} {
		if got := Last(pfx(in)); got != addr(want) {
			t.Errorf("Last(%s) = %v, want %s", in, got, want)
		}
	}
}
