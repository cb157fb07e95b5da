package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discard tells a block device that all of its bytes are free.
func discard(f *os.File, size uint64) error {
	span := [2]uint64{0, size}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

// etherType marks the frames of ping; it is one of those reserved for experiments.
const etherType = 0x88b5

// ping sends one Ethernet frame and returns the text of the one that comes back.
func ping() (string, error) {
	mac, err := linkUp("eth0")
	if err != nil {
		return "", err
	}
	proto := int(etherType>>8 | etherType&0xff<<8) // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, proto)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	index, err := ifIndex(fd, "eth0")
	if err != nil {
		return "", err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: index}); err != nil {
		return "", err
	}
	timeout := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return "", err
	}
	frame := append([]byte{255, 255, 255, 255, 255, 255}, mac...)
	frame = append(frame, etherType>>8, etherType&0xff)
	frame = append(frame, "ping"...)
	if _, err := unix.Write(fd, append(frame, make([]byte, 60)...)); err != nil {
		return "", err
	}
	buf := make([]byte, 1514)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", err
	}
	text := buf[14:n]
	for i, c := range text {
		if c == 0 {
			text = text[:i]
			break
		}
	}
	return fmt.Sprintf("%x %s", mac, text), nil
}

func ifIndex(fd int, name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// linkUp switches an interface on and returns its address.
func linkUp(name string) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	text, err := os.ReadFile("/sys/class/net/" + name + "/address")
	if err != nil {
		return nil, err
	}
	return net.ParseMAC(strings.TrimSpace(string(text)))
}
