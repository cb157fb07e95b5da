// Package ipam hands out addresses of one subnet, and chooses subnets that
// overlap nothing. It keeps its state in memory: who owns an address records it.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
)

// Errors of Allocate and of Choose.
var (
	ErrFull    = errors.New("no available addresses")
	ErrTaken   = errors.New("address already in use")
	ErrOutside = errors.New("address is not in the subnet")
)

// Pool hands out the addresses of a subnet, the lowest free one first. It is not
// safe for concurrent use.
type Pool struct {
	subnet netip.Prefix
	within netip.Prefix // where addresses are chosen
	first  netip.Addr   // lowest that Allocate chooses
	used   map[netip.Addr]struct{}
}

// NewPool makes a pool of subnet that chooses from within, which is subnet when
// it is the zero value. Reserved addresses, and for IPv4 the first and the last
// of the subnet, are never handed out.
func NewPool(subnet, within netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	subnet = subnet.Masked()
	if !within.IsValid() {
		within = subnet
	}
	within = within.Masked()
	if !subnet.Contains(within.Addr()) || within.Bits() < subnet.Bits() {
		return nil, fmt.Errorf("range %s is not in the subnet %s", within, subnet)
	}
	p := &Pool{subnet: subnet, within: within, first: within.Addr(), used: map[netip.Addr]struct{}{}}
	p.used[subnet.Addr()] = struct{}{} // the network, and IPv6's subnet-router anycast
	if subnet.Addr().Is4() && subnet.Bits() < 31 {
		p.used[Last(subnet)] = struct{}{}
	}
	for _, a := range reserved {
		if a.IsValid() {
			p.used[a] = struct{}{}
		}
	}
	return p, nil
}

// Allocate takes want or, if it is the zero value, the lowest free address.
func (p *Pool) Allocate(want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		if !p.subnet.Contains(want) {
			return netip.Addr{}, ErrOutside
		}
		if _, ok := p.used[want]; ok {
			return netip.Addr{}, ErrTaken
		}
		p.used[want] = struct{}{}
		return want, nil
	}
	// At most len(used)+1 steps: one of so many addresses is free, or the range
	// is at its end.
	for a := p.first; a.IsValid() && p.within.Contains(a); a = a.Next() {
		if _, ok := p.used[a]; !ok {
			p.used[a] = struct{}{}
			return a, nil
		}
	}
	return netip.Addr{}, ErrFull
}

// Release gives an address back.
func (p *Pool) Release(a netip.Addr) { delete(p.used, a) }

// Prefix returns a with the subnet's length.
func (p *Pool) Prefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, p.subnet.Bits()) }

// Last returns the highest address of a prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Gateway is the address a subnet's gateway has when nobody says otherwise: the
// first that a host can have.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// defaults are docker's pools for networks that name no subnet.
func defaults(yield func(netip.Prefix) bool) {
	for i := 17; i <= 31; i++ {
		if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i), 0, 0}), 16)) {
			return
		}
	}
	for i := 0; i < 256; i += 16 {
		if !yield(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 20)) {
			return
		}
	}
}

// Choose4 returns the first of docker's default subnets that overlaps none of
// taken.
func Choose4(taken []netip.Prefix) (netip.Prefix, error) {
	for p := range defaults {
		if !overlaps(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("all predefined address pools have been fully subnetted")
}

// Choose6 returns the first free /64 of a /48.
func Choose6(site netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	b := site.Masked().Addr().As16()
	for i := range 1 << 16 {
		b[6], b[7] = byte(i>>8), byte(i)
		if p := netip.PrefixFrom(netip.AddrFrom16(b), 64); !overlaps(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("all predefined IPv6 address pools have been fully subnetted")
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(p) {
			return true
		}
	}
	return false
}
