package qemu

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// monitorSocket is the name of QEMU's monitor in a machine's directory.
const monitorSocket = "qmp.sock"

// plug is QEMU's end of a cable: a descriptor that it inherits or, where it cannot,
// a socket in the machine's directory.
type plug struct {
	fd   int    // 0: none
	path string // where fd is 0
}

// none says that there is no such cable.
func (p plug) none() bool { return p == plug{} }

// address is the plug in the words of -chardev socket.
func (p plug) address() string {
	if p.fd != 0 {
		return fmt.Sprintf("fd=%d", p.fd)
	}
	return "path=" + escape(p.path)
}

// escape makes a value of QEMU's comma-separated arguments.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// plugs are QEMU's ends; an absent one is none.
type plugs struct {
	qmp     plug // QEMU listens; it connects to the others, or they are
	console plug
	streams plug // vsock's or the serial port's
	net     plug
	shares  []plug // in the order of Config.Shares
}

// cable is one connection between QEMU and this process.
type cable struct {
	once sync.Once
	conn net.Conn
	err  error

	wait *net.UnixListener // until QEMU has connected; nil when it need not
}

// open returns this process' end, once QEMU has connected. It fails after close.
func (c *cable) open() (net.Conn, error) {
	c.once.Do(func() {
		if c.wait != nil {
			c.conn, c.err = c.wait.Accept()
			c.wait.Close() // nobody else
		}
	})
	return c.conn, c.err
}

// close hangs up.
func (c *cable) close() {
	if c == nil {
		return
	}
	if c.wait != nil {
		c.wait.Close()
	}
	if conn, err := c.open(); err == nil {
		conn.Close()
	}
}

// cables are the sockets between QEMU and this process.
type cables struct {
	plugs  plugs
	theirs []*os.File // what QEMU inherits, from firstFD on

	monitor string // the path under which QEMU listens until it was dialed
	console *cable
	streams *cable
	net     *cable // nil without a network
	shares  []*cable
}

// layout is how QEMU and this process come by their ends of the cables.
type layout interface {
	monitor(c *cables, path string) (plug, error)
	cable(c *cables, dir, name string) (*cable, plug, error)
}

// openCables makes the sockets. The monitor's has a name, as the QMP library wants
// to dial it; Start removes the name after that. network is the layout for the
// network device's, nil without one.
func openCables(how, network layout, dir string, shares int) (c *cables, err error) {
	c = &cables{monitor: filepath.Join(dir, monitorSocket)}
	defer func() {
		if err != nil {
			c.closeTheirs()
			c.closeOurs()
		}
	}()
	os.Remove(c.monitor) // a leftover's
	if c.plugs.qmp, err = how.monitor(c, c.monitor); err != nil {
		return c, fmt.Errorf("QEMU's monitor: %w", err)
	}
	connect := func(how layout, name string) (cable *cable, p plug) {
		if err == nil {
			if cable, p, err = how.cable(c, dir, name); err != nil {
				err = fmt.Errorf("%s socket: %w", name, err)
			}
		}
		return cable, p
	}
	c.console, c.plugs.console = connect(how, "console")
	c.streams, c.plugs.streams = connect(how, "streams")
	if network != nil {
		c.net, c.plugs.net = connect(network, "network")
	}
	for i := range shares {
		share, p := connect(how, fmt.Sprintf("share%d", i))
		c.shares, c.plugs.shares = append(c.shares, share), append(c.plugs.shares, p)
	}
	return c, err
}

func (c *cables) closeTheirs() {
	for _, f := range c.theirs {
		f.Close()
	}
	c.theirs = nil
}

// abandon gives up the cables to which QEMU has not connected.
func (c *cables) abandon() {
	for _, cable := range append(c.shares, c.console, c.streams, c.net) {
		if cable != nil && cable.wait != nil {
			cable.wait.Close()
		}
	}
}

func (c *cables) closeOurs() {
	os.Remove(c.monitor)
	for _, cable := range append(c.shares, c.console, c.streams, c.net) {
		cable.close()
	}
}
