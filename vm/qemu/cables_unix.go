package qemu

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// firstFD is the number of the first descriptor that QEMU inherits besides its
// standard ones.
const firstFD = 3

// monitorSocket is the name of QEMU's monitor in a machine's directory.
const monitorSocket = "qmp.sock"

// cables are the sockets between QEMU and this process.
type cables struct {
	fds    sockets    // theirs, by QEMU's numbers
	theirs []*os.File // in the order of those numbers

	monitor string // the path under which QEMU listens until it was dialed
	console *net.UnixConn
	vsock   *net.UnixConn
	net     *net.UnixConn // nil without a network
	shares  []*net.UnixConn
}

// openCables makes the sockets. The monitor's is the only one with a name, as
// the QMP library wants to dial it; Start removes the name after that.
func openCables(dir string, network bool, shares int) (c *cables, err error) {
	c = &cables{monitor: filepath.Join(dir, monitorSocket)}
	defer func() {
		if err != nil {
			c.closeTheirs()
			c.closeOurs()
		}
	}()
	if c.fds.qmp, err = c.listen(c.monitor); err != nil {
		return c, err
	}
	if c.console, c.fds.console, err = c.pair("console"); err != nil {
		return c, err
	}
	if c.vsock, c.fds.vsock, err = c.pair("vsock"); err != nil {
		return c, err
	}
	if network {
		if c.net, c.fds.net, err = c.pair("network"); err != nil {
			return c, err
		}
	}
	for range shares {
		conn, fd, err := c.pair("share")
		if err != nil {
			return c, err
		}
		c.shares, c.fds.shares = append(c.shares, conn), append(c.fds.shares, fd)
	}
	return c, nil
}

// listen makes a listening socket for QEMU.
func (c *cables) listen(path string) (int, error) {
	os.Remove(path) // a leftover's
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, fmt.Errorf("QEMU's monitor: %w", err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return 0, fmt.Errorf("QEMU's monitor: %w", err)
	}
	return c.give(f), nil
}

// pair makes a connection between this process and QEMU.
func (c *cables) pair(name string) (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("%s socket: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, 0, fmt.Errorf("%s socket: %w", name, err)
	}
	return conn.(*net.UnixConn), c.give(theirs), nil
}

func (c *cables) give(f *os.File) int {
	c.theirs = append(c.theirs, f)
	return firstFD + len(c.theirs) - 1
}

func (c *cables) closeTheirs() {
	for _, f := range c.theirs {
		f.Close()
	}
	c.theirs = nil
}

func (c *cables) closeOurs() {
	os.Remove(c.monitor)
	for _, conn := range append(c.shares, c.console, c.vsock, c.net) {
		if conn != nil {
			conn.Close()
		}
	}
}
