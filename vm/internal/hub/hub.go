// Package hub keeps the streams of a machine whose hypervisor hands them out one by
// one, so that they break when they have to, and its listeners, which may be there
// before the machine and outlive its restarts.
package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"

	"github.com/berthvm/berth/vm"
)

// Stream is a connection that closes by halves.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Carrier is the hypervisor's machine: the streams of one run of it. Its listeners'
// Accept returns net.ErrClosed once they are closed; another error concerns one
// connection only. Both methods are safe for concurrent use.
type Carrier interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Listen(port uint32) (net.Listener, error)
}

// Hub is one machine's. Its methods are safe for concurrent use.
type Hub struct {
	log  *slog.Logger
	wrap func(net.Conn) Stream

	mu        sync.Mutex // guards what follows
	carrier   Carrier    // nil before Attach
	conns     map[*Conn]struct{}
	listeners map[uint32]*Listener
	done      chan struct{} // closed by Close
	closed    bool
}

// New returns a hub without a machine. wrap gives the carrier's connections what
// they lack.
func New(wrap func(net.Conn) Stream, log *slog.Logger) *Hub {
	return &Hub{log: log, wrap: wrap, conns: map[*Conn]struct{}{}, listeners: map[uint32]*Listener{}, done: make(chan struct{})}
}

// Done is closed by Close.
func (h *Hub) Done() <-chan struct{} { return h.done }

// Attach gives the hub the machine, or the next one after a restart: the listeners
// there are begin to listen there, and no longer where they did.
func (h *Hub) Attach(c Carrier) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return vm.ErrNotRunning
	}
	h.carrier = c
	for _, l := range h.listeners {
		if err := l.open(c); err != nil {
			return err
		}
	}
	return nil
}

// Reset breaks all streams but one, which may be nil: the guest has been restarted.
func (h *Hub) Reset(but *Conn) {
	h.mu.Lock()
	var broken []*Conn
	for c := range h.conns {
		if c != but {
			broken = append(broken, c)
		}
	}
	h.mu.Unlock()
	for _, c := range broken {
		c.Close()
	}
}

// Close breaks all streams and closes all listeners, for good.
func (h *Hub) Close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.done)
	}
	var open []*Listener
	for _, l := range h.listeners {
		open = append(open, l)
	}
	h.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
	h.Reset(nil)
}

// Conn is a stream of the machine.
type Conn struct {
	Stream
	hub *Hub
}

// add takes a stream of the carrier's.
func (h *Hub) add(raw net.Conn) (*Conn, error) {
	c := &Conn{Stream: h.wrap(raw), hub: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		raw.Close()
		return nil, vm.ErrNotRunning
	}
	h.conns[c] = struct{}{}
	return c, nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.hub.mu.Lock()
	delete(c.hub.conns, c)
	c.hub.mu.Unlock()
	return c.Stream.Close()
}

// Dial connects to a port of the guest.
func (h *Hub) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	h.mu.Lock()
	carrier := h.carrier
	h.mu.Unlock()
	if carrier == nil {
		return nil, vm.ErrNotRunning
	}
	raw, err := carrier.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	c, err := h.add(raw)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listener takes the guest's connections to a port, from before there is a machine.
type Listener struct {
	hub      *Hub
	port     uint32
	accepted chan *Conn
	done     chan struct{}
	source   net.Listener // the carrier's; guarded by hub.mu
	closing  sync.Once
}

// Listen takes the guest's connections to a port of the host.
func (h *Hub) Listen(port uint32) (*Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, vm.ErrNotRunning
	}
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, syscall.EADDRINUSE)
	}
	l := &Listener{hub: h, port: port, accepted: make(chan *Conn), done: make(chan struct{})}
	if h.carrier != nil {
		if err := l.open(h.carrier); err != nil {
			return nil, err
		}
	}
	h.listeners[port] = l
	return l, nil
}

// open begins to listen. The caller holds hub.mu.
func (l *Listener) open(c Carrier) error {
	if l.source != nil {
		l.source.Close()
	}
	source, err := c.Listen(l.port)
	if err != nil {
		return fmt.Errorf("listen on vsock port %d: %w", l.port, err)
	}
	l.source = source
	go l.pump(source)
	return nil
}

// pump takes connections from the carrier until its listener says that it was
// closed.
func (l *Listener) pump(source net.Listener) {
	for {
		raw, err := source.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-l.done:
				return
			default:
				l.hub.log.Debug("vsock connection", "port", l.port, "error", err)
				continue
			}
		}
		c, err := l.hub.add(raw)
		if err != nil {
			continue
		}
		select {
		case l.accepted <- c:
		case <-l.done:
			c.Close()
		}
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Take()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Take is Accept.
func (l *Listener) Take() (*Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.closing.Do(func() {
		l.hub.mu.Lock()
		if l.hub.listeners[l.port] == l {
			delete(l.hub.listeners, l.port)
		}
		source := l.source
		l.hub.mu.Unlock()
		close(l.done)
		if source != nil {
			source.Close()
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addr(l.port) }

// addr is a port of the host.
type addr uint32

// Network implements net.Addr.
func (addr) Network() string { return "vsock" }

// String implements net.Addr.
func (a addr) String() string { return fmt.Sprintf("host(2):%d", uint32(a)) }
