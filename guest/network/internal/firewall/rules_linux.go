package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/network/internal/ipam"
)

// sets are the table's variable parts. Names of interfaces are the keys, so that
// an entry can precede its interface.
type sets struct {
	bridges  *nftables.Set // our bridges
	internal *nftables.Set // those of internal networks
	icc      *nftables.Set // bridge . the same bridge, where containers may talk
	direct   *nftables.Set // bridges with an entry in what follows, in open or in published
	trusted  *nftables.Set // interface . bridge whose published ports it reaches
	v4, v6   familySets
}

// familySets are the parts that hold addresses.
type familySets struct {
	subnets *nftables.Set // of all bridges
	masq    *nftables.Set // of bridges that masquerade
	local   *nftables.Set // addresses of the machine's
	any     *nftables.Set // proto . port on any local address → address . port
	exact   *nftables.Set // address . proto . port → address . port

	open, published *nftables.Set // bridges
	targets         *nftables.Set // address . proto . port that is published
}

func newSets(t *nftables.Table) sets {
	id := uint32(0)
	set := func(name string, s nftables.Set) *nftables.Set {
		id++
		s.Table, s.Name, s.ID = t, name, id
		return &s
	}
	addrs := func(suffix string, addr nftables.SetDatatype) familySets {
		target := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		return familySets{
			subnets: set("subnets"+suffix, nftables.Set{KeyType: addr, Interval: true}),
			masq:    set("masquerade"+suffix, nftables.Set{KeyType: addr, Interval: true}),
			local:   set("local"+suffix, nftables.Set{KeyType: addr, Interval: true}),
			any: set("ports"+suffix, nftables.Set{
				KeyType:       nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
				Concatenation: true, IsMap: true, DataType: target,
			}),
			exact: set("address_ports"+suffix, nftables.Set{
				KeyType:       nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService),
				Concatenation: true, IsMap: true, DataType: target,
			}),
			open:      set("open"+suffix, nftables.Set{KeyType: nftables.TypeIFName}),
			published: set("published"+suffix, nftables.Set{KeyType: nftables.TypeIFName}),
			targets: set("targets"+suffix, nftables.Set{
				KeyType:       nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService),
				Concatenation: true,
			}),
		}
	}
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	return sets{
		bridges:  set("bridges", nftables.Set{KeyType: nftables.TypeIFName}),
		internal: set("internal", nftables.Set{KeyType: nftables.TypeIFName}),
		icc:      set("icc", nftables.Set{KeyType: pair, Concatenation: true}),
		direct:   set("direct", nftables.Set{KeyType: nftables.TypeIFName}),
		trusted:  set("trusted", nftables.Set{KeyType: pair, Concatenation: true}),
		v4:       addrs("4", nftables.TypeIPAddr),
		v6:       addrs("6", nftables.TypeIP6Addr),
	}
}

func (s sets) family(a netip.Addr) familySets {
	if a.Is4() {
		return s.v4
	}
	return s.v6
}

// add queues the sets, with the machine's own addresses in them.
func (s sets) add(c *nftables.Conn, local []netip.Addr) error {
	if err := addAll(c, s.bridges, s.internal, s.icc, s.direct, s.trusted,
		s.v4.subnets, s.v4.masq, s.v4.local, s.v4.any, s.v4.exact, s.v4.open, s.v4.published, s.v4.targets,
		s.v6.subnets, s.v6.masq, s.v6.local, s.v6.any, s.v6.exact, s.v6.open, s.v6.published, s.v6.targets); err != nil {
		return err
	}
	for _, p := range []string{"127.0.0.0/8", "::1/128"} {
		p := netip.MustParsePrefix(p)
		if err := c.SetAddElements(s.family(p.Addr()).local, interval(p)); err != nil {
			return err
		}
	}
	for _, a := range local {
		if err := c.SetAddElements(s.family(a).local, interval(netip.PrefixFrom(a, a.BitLen()))); err != nil {
			return err
		}
	}
	return nil
}

func addAll(c *nftables.Conn, all ...*nftables.Set) error {
	for _, s := range all {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	return nil
}

// interval is a prefix as the two elements that an interval set has for it.
func interval(p netip.Prefix) []nftables.SetElement {
	els := []nftables.SetElement{{Key: p.Masked().Addr().AsSlice()}}
	if end := ipam.Last(p).Next(); end.IsValid() {
		els = append(els, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return els
}

func bridgeElements(s sets, b Bridge) []element {
	name := nftables.SetElement{Key: ifname(b.Name)}
	els := []element{{s.bridges, name}}
	if b.Internal {
		els = append(els, element{s.internal, name})
	}
	if b.ICC {
		els = append(els, element{s.icc, nftables.SetElement{Key: append(ifname(b.Name), ifname(b.Name)...)}})
	}
	ranges := func(set *nftables.Set, p netip.Prefix) {
		for _, e := range interval(p) {
			els = append(els, element{set, e})
		}
	}
	for _, p := range b.Subnets {
		ranges(s.family(p.Addr()).subnets, p)
	}
	if !b.Internal {
		for _, p := range b.Masquerade {
			ranges(s.family(p.Addr()).masq, p)
		}
	}
	for _, a := range b.Gateways {
		ranges(s.family(a).local, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(els, directElements(s, b)...)
}

// directElements are those of a bridge whose containers are reached at their own
// addresses.
func directElements(s sets, b Bridge) (els []element) {
	if b.Internal {
		return nil
	}
	name := nftables.SetElement{Key: ifname(b.Name)}
	for _, f := range []struct {
		sets familySets
		is   Direct
	}{{s.v4, b.Direct4}, {s.v6, b.Direct6}} {
		switch f.is {
		case Open:
			els = append(els, element{f.sets.open, name})
		case Published:
			els = append(els, element{f.sets.published, name})
		}
	}
	for _, from := range b.Trusted {
		els = append(els, element{s.trusted, nftables.SetElement{Key: append(ifname(from), ifname(b.Name)...)}})
	}
	if len(els) > 0 {
		els = append(els, element{s.direct, name})
	}
	return els
}

func forwardElements(s sets, f Forward) []element {
	port := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	pad := func(b []byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }
	to := f.To.Addr()
	fam := s.family(to)
	if f.HostPort == 0 {
		return []element{{fam.targets, nftables.SetElement{Key: append(append(to.AsSlice(), pad([]byte{f.Proto})...), pad(port(f.To.Port()))...)}}}
	}
	el := nftables.SetElement{
		Key: append(pad([]byte{f.Proto}), pad(port(f.HostPort))...),
		Val: append(to.AsSlice(), pad(port(f.To.Port()))...),
	}
	if !f.HostIP.IsValid() || f.HostIP.IsUnspecified() {
		return []element{{fam.any, el}}
	}
	el.Key = append(f.HostIP.AsSlice(), el.Key...)
	return []element{{fam.exact, el}}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// addChains queues the chains and their rules. The package doc of guest/network
// says what they are for.
func addChains(c *nftables.Conn, t *nftables.Table, s sets, self Machine) {
	b := builder{c, t}

	// Before anything is translated: no container speaks as the machine's
	// loopback or to it, which route_localnet on the bridges would allow.
	raw := b.chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	for _, dir := range []uint32{offsetSource4, offsetDest4} {
		b.rule(raw, in(s.bridges), ipv4(), payload(dir, 4), masked(4, 0xff000000, 0x7f000000), verdict(expr.VerdictDrop))
	}

	fwd := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	b.rule(fwd, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	b.rule(fwd, load(expr.MetaKeyIIFNAME, 1), load(expr.MetaKeyOIFNAME, 2), inSet(s.icc, false), verdict(expr.VerdictAccept))
	if self.Host.Is4() {
		b.rule(fwd, fromHost(self), out(s.bridges), verdict(expr.VerdictAccept))
	}
	b.rule(fwd, in(s.internal), verdict(expr.VerdictDrop))
	b.rule(fwd, ctDNAT(), verdict(expr.VerdictAccept))
	direct := b.direct(s)
	b.rule(fwd, out(s.direct), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: direct.Name}})
	b.rule(fwd, in(s.bridges), load(expr.MetaKeyOIFNAME, 1), inSet(s.bridges, true), verdict(expr.VerdictAccept))
	b.rule(fwd, in(s.bridges), verdict(expr.VerdictDrop))
	b.rule(fwd, out(s.bridges), verdict(expr.VerdictDrop))

	ports := b.c.AddChain(&nftables.Chain{Name: "ports", Table: t})
	b.translate(ports, s.v4, ipv4(), offsetDest4, 4)
	b.translate(ports, s.v6, ipv6(), offsetDest6, 16)
	toPorts := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name}}
	pre := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	b.rule(pre, toPorts)
	local := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	b.rule(local, toPorts)

	// What comes from a bridge's own subnet to a published port, and what comes
	// from the machine's loopback, must find its way back through us.
	post := b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masq := []expr.Any{&expr.Masq{}}
	if self.Host.Is4() {
		// A container's way back to the host may be by another of its networks.
		b.rule(post, fromHost(self), out(s.bridges), masq)
	}
	for _, f := range []struct {
		sets familySets
		is   []expr.Any
		off  uint32
		size uint32
	}{{s.v4, ipv4(), offsetSource4, 4}, {s.v6, ipv6(), offsetSource6, 16}} {
		b.rule(post, f.is, payload(f.off, f.size), inSet(f.sets.masq, false), load(expr.MetaKeyOIFNAME, 1), inSet(s.bridges, true), masq)
		b.rule(post, f.is, ctDNAT(), payload(f.off, f.size), inSet(f.sets.subnets, false), out(s.bridges), masq)
	}
	b.rule(post, ipv4(), ctDNAT(), payload(offsetSource4, 4), masked(4, 0xff000000, 0x7f000000), out(s.bridges), masq)
}

// Where addresses stand in the network header.
const (
	offsetSource4, offsetDest4 = 12, 16
	offsetSource6, offsetDest6 = 8, 24
)

type builder struct {
	c *nftables.Conn
	t *nftables.Table
}

func (b builder) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: typ, Hooknum: hook, Priority: prio})
}

func (b builder) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: chain, Exprs: all})
}

// direct makes the chain for what goes to a container's own address on a bridge that
// may be reached like that. It accepts some.
func (b builder) direct(s sets) *nftables.Chain {
	chain := b.c.AddChain(&nftables.Chain{Name: "direct", Table: b.t})
	for _, f := range []struct {
		sets        familySets
		is          []expr.Any
		destination uint32
		size        uint32
		icmp        byte
	}{{s.v4, ipv4(), offsetDest4, 4, unix.IPPROTO_ICMP}, {s.v6, ipv6(), offsetDest6, 16, unix.IPPROTO_ICMPV6}} {
		words := f.size / 4
		isTarget := []expr.Any{
			&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.size},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_00 + words},
			&expr.Payload{DestRegister: unix.NFT_REG32_01 + words, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: f.sets.targets.Name, SetID: f.sets.targets.ID},
		}
		b.rule(chain, f.is, out(f.sets.open), verdict(expr.VerdictAccept))
		b.rule(chain, f.is, out(f.sets.published), load(expr.MetaKeyL4PROTO, 1), equal([]byte{f.icmp}), verdict(expr.VerdictAccept))
		b.rule(chain, f.is, out(f.sets.published), isTarget, verdict(expr.VerdictAccept))
		b.rule(chain, f.is, load(expr.MetaKeyIIFNAME, 1), load(expr.MetaKeyOIFNAME, 2), inSet(s.trusted, false), isTarget, verdict(expr.VerdictAccept))
	}
	return chain
}

// translate adds the look-ups of published ports of one family: first by exact
// address, then for any address of the machine's.
func (b builder) translate(chain *nftables.Chain, s familySets, is []expr.Any, destination, size uint32) {
	family := uint32(unix.NFPROTO_IPV4)
	if size == 16 {
		family = unix.NFPROTO_IPV6
	}
	words := size / 4
	keyAndNAT := func(m *nftables.Set, first uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first},
			&expr.Payload{DestRegister: first + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: unix.NFT_REG32_00, RegProtoMin: unix.NFT_REG32_00 + words, Specified: true},
		}
	}
	address := []expr.Any{&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: size}}
	b.rule(chain, is, address, keyAndNAT(s.exact, unix.NFT_REG32_00+words))
	b.rule(chain, is, payload(destination, size), inSet(s.local, false), keyAndNAT(s.any, unix.NFT_REG32_00))
}

func load(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

func inSet(s *nftables.Set, not bool) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: not}}
}

func in(s *nftables.Set) []expr.Any {
	return append(load(expr.MetaKeyIIFNAME, 1), inSet(s, false)...)
}

func out(s *nftables.Set) []expr.Any {
	return append(load(expr.MetaKeyOIFNAME, 1), inSet(s, false)...)
}

// fromHost matches the connections to published ports that come from the machine's
// host without being translated.
func fromHost(self Machine) []expr.Any {
	match := append(load(expr.MetaKeyIIFNAME, 1), equal(ifname(self.Uplink))...)
	match = append(match, ipv4()...)
	return append(append(match, payload(offsetSource4, 4)...), equal(self.Host.AsSlice())...)
}

func ipv4() []expr.Any { return nfproto(unix.NFPROTO_IPV4) }
func ipv6() []expr.Any { return nfproto(unix.NFPROTO_IPV6) }

func nfproto(p byte) []expr.Any {
	return append(load(expr.MetaKeyNFPROTO, 1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}})
}

func payload(offset, size uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
}

func masked(size, mask, value uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: binaryutil.BigEndian.PutUint32(mask), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint32(value)},
	}
}

func ctState(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits) }

// ctDNAT matches what a published port has taken in (IPS_DST_NAT).
func ctDNAT() []expr.Any { return ctBits(expr.CtKeySTATUS, 1<<5) }

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
