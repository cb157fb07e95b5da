//go:build unix

package vz

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the framework expects of the network's socket, in bytes: a receive buffer
// of four times the send buffer.
const (
	sendBuffer    = 1 << 20
	receiveBuffer = 4 << 20
)

// datagramPair makes the machine's Ethernet cable. theirs must stay open for as
// long as the framework's machine exists: that has only its number.
func datagramPair() (ours *net.UnixConn, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // macOS has no SOCK_CLOEXEC
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("network socket: %w", err)
	}
	near := os.NewFile(uintptr(fds[0]), "network")
	defer near.Close()
	theirs = os.NewFile(uintptr(fds[1]), "network")
	defer func() {
		if err != nil {
			theirs.Close()
		}
	}()
	for _, fd := range fds {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("network socket's buffers: %w", err)
		}
	}
	conn, err := net.FileConn(near)
	if err != nil {
		return nil, nil, fmt.Errorf("network socket: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}
