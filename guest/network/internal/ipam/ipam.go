// Package ipam hands out addresses of one subnet, and chooses subnets that
// overlap nothing. It keeps its state in memory: who owns an address records it.
package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Errors of Allocate and of Choose.
var (
	ErrFull    = errors.New("no available addresses")
	ErrTaken   = errors.New("address already in use")
	ErrOutside = errors.New("address is not in the subnet")
	ErrSize    = errors.New("no range holds a subnet of that size")
)

// Pool hands out the addresses of a subnet, the lowest free one first. It is not
// safe for concurrent use.
type Pool struct {
	subnet   netip.Prefix
	within   netip.Prefix            // where addresses are chosen
	used     map[netip.Addr]struct{} // one for all pools that share
	reserved []netip.Addr
}

// NewPool makes a pool of subnet that chooses from within, which is subnet when
// it is the zero value. Reserved addresses, and for IPv4 the first and the last
// of the subnet (RFC 3021 excepts a /31), are never handed out.
func NewPool(subnet, within netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	subnet = subnet.Masked()
	if !within.IsValid() {
		within = subnet
	}
	within = within.Masked()
	if !subnet.Contains(within.Addr()) || within.Bits() < subnet.Bits() {
		return nil, fmt.Errorf("range %s is not in the subnet %s", within, subnet)
	}
	p := &Pool{subnet: subnet, within: within, used: map[netip.Addr]struct{}{}}
	if subnet.Addr().Is6() || subnet.Bits() < 31 {
		p.used[subnet.Addr()] = struct{}{} // the network, and IPv6's subnet-router anycast
	}
	if subnet.Addr().Is4() && subnet.Bits() < 31 {
		p.used[Last(subnet)] = struct{}{}
	}
	for _, a := range reserved {
		if a.IsValid() {
			p.used[a] = struct{}{}
			p.reserved = append(p.reserved, a)
		}
	}
	return p, nil
}

// Share makes another pool of the same subnet: what one of them hands out, no
// other does. ErrTaken means that an address to reserve is not free.
func (p *Pool) Share(within netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	other, err := NewPool(p.subnet, within, reserved...)
	if err != nil {
		return nil, err
	}
	for i, a := range other.reserved {
		if _, ok := p.used[a]; ok {
			for _, a := range other.reserved[:i] {
				p.Release(a)
			}
			return nil, ErrTaken
		}
		p.used[a] = struct{}{}
	}
	other.used = p.used
	return other, nil
}

// Close gives the reserved addresses back, for the pools that share.
func (p *Pool) Close() {
	for _, a := range p.reserved {
		p.Release(a)
	}
}

// Usage is how many addresses of the subnet are in use, reserved ones included,
// and how many Allocate can still choose, at most math.MaxUint64.
func (p *Pool) Usage() (inUse, available uint64) {
	within := uint64(0)
	for a := range p.used {
		if p.within.Contains(a) {
			within++
		}
	}
	inUse = uint64(len(p.used))
	switch bits := p.within.Addr().BitLen() - p.within.Bits(); {
	case bits < 64:
		return inUse, 1<<bits - within
	case bits == 64 && within > 0:
		return inUse, math.MaxUint64 - (within - 1)
	}
	return inUse, math.MaxUint64
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
	for a := p.within.Addr(); a.IsValid() && p.within.Contains(a); a = a.Next() {
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

// Gateway is the address a network's gateway has when nobody says otherwise: the
// first that a host can have in within, a part of the subnet or all of it.
func Gateway(subnet, within netip.Prefix) netip.Addr {
	subnet = subnet.Masked()
	if within.IsValid() && within.Masked().Addr() != subnet.Addr() {
		return within.Masked().Addr()
	}
	return subnet.Addr().Next()
}

// Block is a range of addresses that is split into subnets.
type Block struct {
	Base netip.Prefix
	Bits int // a subnet's length
}

// Locals are the blocks of networks that reach no further than the machine.
func Locals() []Block { return slices.Clone(local4) }

// Docker's ranges for networks that name no subnet: of the machine's own networks,
// and of those that reach further.
var (
	local4 = []Block{
		{netip.MustParsePrefix("172.17.0.0/16"), 16}, {netip.MustParsePrefix("172.18.0.0/16"), 16}, {netip.MustParsePrefix("172.19.0.0/16"), 16},
		{netip.MustParsePrefix("172.20.0.0/14"), 16}, {netip.MustParsePrefix("172.24.0.0/14"), 16}, {netip.MustParsePrefix("172.28.0.0/14"), 16},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
	}
	global4 = []Block{{netip.MustParsePrefix("10.0.0.0/8"), 24}}
)

// Request says which subnet Choose looks for.
type Request struct {
	Global bool         // of a network that reaches beyond the machine (IPv4)
	Site   netip.Prefix // IPv6: the /48 that subnets come from; zero for IPv4
	Bits   int          // the subnet's length; 0 for the default
	Taken  []netip.Prefix
}

// maxTries bounds the search: so many subnets there are of a default size.
const maxTries = 1 << 16

// Choose returns the first of docker's default subnets that overlaps none of those
// that are taken. The error is ErrFull or, when no range holds subnets of the
// wanted length, ErrSize.
func Choose(r Request) (netip.Prefix, error) {
	blocks := local4
	switch {
	case r.Site.IsValid():
		blocks = []Block{{r.Site.Masked(), 64}}
	case r.Global:
		blocks = global4
	}
	fits := false
	for _, b := range blocks {
		if r.Bits != 0 {
			b.Bits = r.Bits
		}
		if b.Bits < b.Base.Bits() || b.Bits > b.Base.Addr().BitLen() {
			continue
		}
		fits = true
		p := netip.PrefixFrom(b.Base.Addr(), b.Bits)
		for range maxTries {
			if !overlaps(p, r.Taken) {
				return p, nil
			}
			next := Last(p).Next()
			if !b.Base.Contains(next) {
				break
			}
			p = netip.PrefixFrom(next, b.Bits)
		}
	}
	if !fits {
		return netip.Prefix{}, ErrSize
	}
	return netip.Prefix{}, ErrFull
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(p) {
			return true
		}
	}
	return false
}
