package publish

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Held is a port of the machine's own, which nobody else gets until Close.
type Held struct{ fd int }

// Close lets the port go.
func (h Held) Close() error { return unix.Close(h.fd) }

// Moved is nothing to a port that no connection comes from.
func (Held) Moved() {}

// HoldSCTP takes a port of the machine for SCTP, which the host does not forward.
// Nothing listens there: the network translates what comes before it gets that far.
// network is "sctp", or "sctp6" where "[::]" is no IPv4 address too; an address that
// is the host's stands for all of the machine's.
func HoldSCTP(network, address string) (netip.AddrPort, Held, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return at, Held{}, fmt.Errorf("cannot publish a port: %w", err)
	}
	addr := at.Addr().Unmap()
	family, any := unix.AF_INET, netip.IPv4Unspecified()
	if addr.Is6() {
		family, any = unix.AF_INET6, netip.IPv6Unspecified()
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return at, Held{}, fmt.Errorf("cannot publish %s by SCTP: %w", at, err)
	}
	if strings.HasSuffix(network, "6") {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, socketAddress(addr, at.Port()))
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		err = unix.Bind(fd, socketAddress(any, at.Port()))
	}
	var name unix.Sockaddr
	if err == nil {
		name, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			//lint:ignore ST1005 docker's words, which clients look for
			return at, Held{}, fmt.Errorf("Bind for %s failed: port is already allocated", at)
		}
		return at, Held{}, fmt.Errorf("cannot publish %s by SCTP: %w", at, err)
	}
	switch s := name.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(at.Addr(), uint16(s.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(at.Addr(), uint16(s.Port))
	}
	return at, Held{fd}, nil
}

func socketAddress(addr netip.Addr, port uint16) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
}
