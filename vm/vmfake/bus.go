package vmfake

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// The vsock addresses of the two ends.
const (
	hostCID  = 2
	guestCID = 3
)

// backlog is how many connections a listener keeps for Accept; more are refused.
const backlog = 128

// Addr is the address of one end of a stream: a net.Addr.
type Addr struct {
	CID  uint64
	Port uint32
}

// Network implements net.Addr.
func (Addr) Network() string { return "vsock" }

// String implements net.Addr.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// bus carries the streams between a host and its guest.
type bus struct {
	mu        sync.Mutex
	listeners map[Addr]*listener
	conns     map[*conn]struct{} // one end of every stream of which an end is open
	port      uint32             // last one given to a dialing end
	closed    bool
}

func newBus() *bus {
	return &bus{
		listeners: make(map[Addr]*listener),
		conns:     make(map[*conn]struct{}),
		port:      1 << 16,
	}
}

// listen opens a port.
func (b *bus) listen(a Addr) (net.Listener, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, net.ErrClosed
	}
	if b.listeners[a] != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: a, Err: syscall.EADDRINUSE}
	}
	l := &listener{addr: a, queue: make(chan *conn, backlog), done: make(chan struct{})}
	l.bus.Store(b)
	b.listeners[a] = l
	return l, nil
}

// dial connects from CID from to a listener.
func (b *bus) dial(ctx context.Context, from uint64, to Addr) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.listeners[to]
	if l == nil || b.closed {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: to, Err: syscall.ECONNREFUSED}
	}
	b.port++
	near, far := newStream(Addr{CID: from, Port: b.port}, to)
	open := 2
	for _, c := range []*conn{near, far} {
		c.onClose = func() { b.forget(near, &open) }
	}
	select {
	case l.queue <- far:
	default:
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: to, Err: syscall.ECONNREFUSED}
	}
	b.conns[near] = struct{}{}
	return near, nil
}

// forget drops a stream once both its ends are closed.
func (b *bus) forget(c *conn, open *int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if *open--; *open == 0 {
		delete(b.conns, c)
	}
}

// reset does what a restart of the guest does: its listeners and every stream
// are gone, the host's listeners stay.
func (b *bus) reset() {
	b.mu.Lock()
	gone := b.take(func(a Addr) bool { return a.CID == guestCID })
	b.mu.Unlock()
	gone()
}

// adopt moves the guest's listeners here from another bus.
func (b *bus) adopt(from *bus) {
	from.mu.Lock()
	defer from.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for a, l := range from.listeners {
		if a.CID == guestCID {
			delete(from.listeners, a)
			b.listeners[a] = l
			l.bus.Store(b)
		}
	}
}

// close ends everything for good.
func (b *bus) close() {
	b.mu.Lock()
	b.closed = true
	gone := b.take(func(Addr) bool { return true })
	b.mu.Unlock()
	gone()
}

// take removes the listeners that match and all streams, and returns what ends
// them without mu. The caller holds mu.
func (b *bus) take(match func(Addr) bool) func() {
	var ls []*listener
	for a, l := range b.listeners {
		if match(a) {
			delete(b.listeners, a)
			ls = append(ls, l)
		}
	}
	conns := b.conns
	b.conns = make(map[*conn]struct{})
	return func() {
		for c := range conns {
			c.abort()
		}
		for _, l := range ls {
			l.finish()
		}
	}
}

// listener is an open port.
type listener struct {
	bus   atomic.Pointer[bus] // changes under the mu of both
	addr  Addr
	queue chan *conn
	once  sync.Once
	done  chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, l.errClosed("accept")
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, l.errClosed("accept")
	}
}

// Close implements net.Listener. Connections nobody has accepted are reset.
func (l *listener) Close() error {
	for {
		b := l.bus.Load()
		b.mu.Lock()
		there := l.bus.Load() == b
		if there && b.listeners[l.addr] == l {
			delete(b.listeners, l.addr)
		}
		b.mu.Unlock()
		if there {
			break
		}
	}
	if !l.finish() {
		return l.errClosed("close")
	}
	return nil
}

// finish ends Accept and resets what waits for it. Nobody may queue any more.
func (l *listener) finish() (first bool) {
	l.once.Do(func() {
		first = true
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.abort()
				c.Close()
			default:
				return
			}
		}
	})
	return first
}

func (l *listener) errClosed(op string) error {
	return &net.OpError{Op: op, Net: "vsock", Addr: l.addr, Err: net.ErrClosed}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }
