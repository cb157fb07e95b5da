package boot

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire"
)

const card = "eth0"

// configureNetwork gives the loopback and the network card their addresses, after
// making the card where there is none but a cable.
func (m *machine) configureNetwork() error {
	n := m.host.welcome.Network
	if m.hw.cable && n.Address != "" {
		err := m.hw.plugCable(m.link, func(err error) { m.log.Error("the network cable is out", "err", err) })
		if err != nil {
			return err
		}
	}
	return configureNetwork(n)
}

// configureNetwork gives the loopback and the network card their addresses.
// A machine without a card has no network; that is its host's choice.
func configureNetwork(n wire.Network) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := bringUp(fd, "lo"); err != nil {
		return err
	}
	if n.Address == "" {
		return nil
	}
	address, err := netip.ParsePrefix(n.Address)
	if err != nil || !address.Addr().Is4() {
		return fmt.Errorf("the host sent the address %q, want IPv4 with a prefix length", n.Address)
	}
	gateway, err := netip.ParseAddr(n.Gateway)
	if err != nil || !gateway.Is4() {
		return fmt.Errorf("the host sent the gateway %q, want IPv4", n.Gateway)
	}
	if err := waitForCard(5 * time.Second); err != nil {
		return err
	}
	// The host's user-mode network has no IPv6: do not let the kernel look for it.
	if err := sysctl("net/ipv6/conf/"+card+"/disable_ipv6", "1"); err != nil {
		return err
	}
	mask := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-address.Bits()))))
	steps := []struct {
		what string
		do   func() error
	}{
		{"MTU", func() error { return setMTU(fd, card, n.MTU) }},
		{"address", func() error { return setAddress(fd, card, unix.SIOCSIFADDR, address.Addr()) }},
		{"netmask", func() error { return setAddress(fd, card, unix.SIOCSIFNETMASK, mask) }},
		{"up", func() error { return bringUp(fd, card) }},
		{"default route", func() error { return addDefaultRoute(fd, gateway) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("set %s's %s: %w", card, step.what, err)
		}
	}
	return nil
}

func waitForCard(patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		_, err := os.Stat("/sys/class/net/" + card)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the machine has no network card: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func bringUp(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func setMTU(fd int, name string, mtu int) error {
	if mtu == 0 {
		return nil
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint32(uint32(mtu))
	return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req)
}

func setAddress(fd int, name string, request uint, address netip.Addr) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := req.SetInet4Addr(address.AsSlice()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, req)
}

// rtentry is struct rtentry of <linux/route.h> on 64-bit machines.
type rtentry struct {
	_           uint64
	destination unix.RawSockaddrInet4
	gateway     unix.RawSockaddrInet4
	mask        unix.RawSockaddrInet4
	flags       uint16
	_           [3]uint16
	_           [4]uint64 // pad3, pad4, tos and class, metric
	device      *byte
	_           [4]uint64 // mtu, window, irtt
}

func addDefaultRoute(fd int, gateway netip.Addr) error {
	const rtfUp, rtfGateway = 0x1, 0x2
	route := rtentry{flags: rtfUp | rtfGateway}
	route.destination.Family = unix.AF_INET
	route.mask.Family = unix.AF_INET
	route.gateway = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: gateway.As4()}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route))); errno != 0 {
		return errno
	}
	return nil
}
