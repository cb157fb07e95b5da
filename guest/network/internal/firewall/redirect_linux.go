package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// RedirectDNS makes port 53 of address lead to other ports of it, in the network
// namespace that the file descriptor refers to. It replaces an earlier redirect.
// It goes away with the namespace.
func RedirectDNS(netns int, address netip.Addr, udp, tcp uint16) error {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return fmt.Errorf("cannot open nftables in the container: %w", err)
	}
	t := &nftables.Table{Name: "berth_dns", Family: nftables.TableFamilyIPv4}
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	b := builder{conn, t}
	chain := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, r := range []struct {
		proto byte
		port  uint16
	}{{unix.IPPROTO_UDP, udp}, {unix.IPPROTO_TCP, tcp}} {
		b.rule(chain,
			payload(offsetDest4, 4), equal(address.AsSlice()),
			load(expr.MetaKeyL4PROTO, 1), equal([]byte{r.proto}),
			[]expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}},
			equal([]byte{0, 53}),
			natTo(netip.AddrPortFrom(address, r.port)))
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cannot redirect DNS in the container: %w", err)
	}
	return nil
}

// RedirectLoopback makes what connects by TCP to the loopback's addresses of to's
// family, in the network namespace that the file descriptor refers to, reach to
// instead, which is one of them. It goes away with the namespace.
func RedirectLoopback(netns int, to netip.AddrPort) error {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return fmt.Errorf("cannot open nftables in the container: %w", err)
	}
	family, loopback := nftables.TableFamilyIPv4, [][]expr.Any{payload(offsetDest4, 4), masked(4, 0xff000000, 0x7f000000)}
	if to.Addr().Is6() {
		family, loopback = nftables.TableFamilyIPv6, [][]expr.Any{payload(offsetDest6, 16), equal(netip.IPv6Loopback().AsSlice())}
	}
	t := conn.AddTable(&nftables.Table{Name: "berth_loopback", Family: family})
	b := builder{conn, t}
	chain := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	b.rule(chain, append(loopback, load(expr.MetaKeyL4PROTO, 1), equal([]byte{unix.IPPROTO_TCP}), natTo(to))...)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cannot redirect the container's loopback: %w", err)
	}
	return nil
}

// natTo makes a packet's destination another, of the same family.
func natTo(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

func equal(data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}
