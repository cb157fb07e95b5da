package virtiovsock

import (
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

const network = "vsock"

// Addr is the address of one end of a vsock connection: a net.Addr.
type Addr struct {
	CID  uint64
	Port uint32
}

// Network returns "vsock".
func (a Addr) Network() string { return network }

// String returns "cid:port".
func (a Addr) String() string {
	return strconv.FormatUint(a.CID, 10) + ":" + strconv.FormatUint(uint64(a.Port), 10)
}

// Listen takes the guest's connections to a host port. It needs no running
// guest and outlives restarts of the guest. A second Listen on an open port
// fails with EADDRINUSE. Accepted connections have CloseWrite and deadlines;
// their remote address is an Addr. Connections beyond a backlog of 128 are
// refused.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &listener{dev: d, port: port, arrived: sync.Cond{L: &d.mu}}
	switch {
	case d.closed:
		return nil, l.opError("listen", net.ErrClosed)
	case d.listeners[port] != nil:
		return nil, l.opError("listen", syscall.EADDRINUSE)
	}
	d.listeners[port] = l
	return l, nil
}

// listener is a net.Listener. The device's mu guards what changes.
type listener struct {
	dev     *Device
	port    uint32
	closed  bool
	queue   []*conn // connected, not accepted
	arrived sync.Cond
}

// Accept returns the guest's next connection.
func (l *listener) Accept() (net.Conn, error) {
	l.dev.mu.Lock()
	defer l.dev.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.arrived.Wait()
	}
	if l.closed {
		return nil, l.opError("accept", net.ErrClosed)
	}
	c := l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	c.backlog = nil
	return c, nil
}

// Close refuses further connections and resets those nobody has accepted.
func (l *listener) Close() error {
	l.dev.mu.Lock()
	defer l.dev.mu.Unlock()
	if l.closed {
		return l.opError("close", net.ErrClosed)
	}
	l.close()
	l.dev.run()
	return nil
}

func (l *listener) close() {
	l.closed = true
	delete(l.dev.listeners, l.port)
	for _, c := range slices.Clone(l.queue) {
		if c.state == stateGone { // it said all it had to say, to nobody
			c.lent = false
			c.release()
			continue
		}
		c.abort(net.ErrClosed, true)
	}
	l.queue = nil
	l.arrived.Broadcast()
}

// remove forgets a connection that ended before it was accepted.
func (l *listener) remove(c *conn) {
	if i := slices.Index(l.queue, c); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
}

func (l *listener) Addr() net.Addr { return Addr{HostCID, l.port} }

func (l *listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: network, Addr: Addr{HostCID, l.port}, Err: err}
}
