//go:build unix

package qemu

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstFD is the number of the first descriptor that QEMU inherits besides its
// standard ones.
const firstFD = 3

// usual is this host's layout of cables.
var usual layout = inherited{}

// inherited are cables whose ends QEMU inherits: they have no names.
type inherited struct{}

func (inherited) monitor(c *cables, path string) (plug, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return plug{}, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return plug{}, err
	}
	return c.give(f), nil
}

func (inherited) cable(c *cables, _, name string) (*cable, plug, error) {
	syscall.ForkLock.RLock() // where a socket cannot be born closed on exec
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, plug{}, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, plug{}, err
	}
	return &cable{conn: conn}, c.give(theirs), nil
}

func (c *cables) give(f *os.File) plug {
	c.theirs = append(c.theirs, f)
	return plug{fd: firstFD + len(c.theirs) - 1}
}
