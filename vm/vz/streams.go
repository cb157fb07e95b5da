package vz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/wire/framed"
	"github.com/berthvm/berth/vm"
)

const (
	// connectTimeout bounds one attempt of the framework's to connect, which has
	// no bound of its own; connectTries is how many are made.
	connectTimeout = 2 * time.Second
	connectTries   = 3
)

// hub keeps the machine's streams, so that they break when they have to.
// Its methods are safe for concurrent use.
type hub struct {
	log     *slog.Logger
	patient time.Duration // connectTimeout, but in tests

	mu        sync.Mutex
	inst      instance // nil before attach
	conns     map[*conn]struct{}
	listeners map[uint32]*listener
	done      chan struct{} // closed by close
	closed    bool
}

func newHub(patient time.Duration, log *slog.Logger) *hub {
	return &hub{log: log, patient: patient, conns: map[*conn]struct{}{}, listeners: map[uint32]*listener{}, done: make(chan struct{})}
}

// attach gives the hub the machine: the listeners there are begin to listen.
func (h *hub) attach(inst instance) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inst = inst
	for _, l := range h.listeners {
		if err := l.open(inst); err != nil {
			return err
		}
	}
	return nil
}

// reset breaks all streams but one: the guest has been restarted.
func (h *hub) reset(but *conn) {
	h.mu.Lock()
	var broken []*conn
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

// close breaks all streams and closes all listeners, for good.
func (h *hub) close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.done)
	}
	var open []*listener
	for _, l := range h.listeners {
		open = append(open, l)
	}
	h.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
	h.reset(nil)
}

// conn is a stream of the machine.
type conn struct {
	*framed.Conn
	hub *hub
}

// add takes a stream of the framework's.
func (h *hub) add(raw net.Conn) (*conn, error) {
	c := &conn{Conn: framed.New(raw), hub: h}
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
func (c *conn) Close() error {
	c.hub.mu.Lock()
	delete(c.hub.conns, c)
	c.hub.mu.Unlock()
	return c.Conn.Close()
}

// dial connects to the guest's port. The framework may never answer, so each
// attempt has an end, and the next may do better: the guest may have been about to
// load its driver.
func (h *hub) dial(ctx context.Context, port uint32) (net.Conn, error) {
	h.mu.Lock()
	inst := h.inst
	h.mu.Unlock()
	if inst == nil {
		return nil, vm.ErrNotRunning
	}
	for range connectTries {
		raw, err := h.try(ctx, inst, port)
		if errors.Is(err, errUnanswered) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := h.add(raw)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, fmt.Errorf("the guest does not answer on vsock port %d: %w", port, syscall.ETIMEDOUT)
}

var errUnanswered = errors.New("no answer")

// try is one attempt.
func (h *hub) try(ctx context.Context, inst instance, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		conn net.Conn
		err  error
	}
	answer, gaveUp := make(chan result), make(chan struct{})
	defer close(gaveUp)
	go func() {
		c, err := inst.connect(port)
		select {
		case answer <- result{c, err}:
		case <-gaveUp:
			if err == nil {
				c.Close()
			}
		}
	}()
	timer := time.NewTimer(h.patient)
	defer timer.Stop()
	select {
	case r := <-answer:
		if r.err != nil {
			return nil, fmt.Errorf("dial the guest's vsock port %d: %w", port, r.err)
		}
		return r.conn, nil
	case <-timer.C:
		return nil, errUnanswered
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.done:
		return nil, vm.ErrNotRunning
	}
}

// listener takes the guest's connections to a port, from before there is a machine.
type listener struct {
	hub      *hub
	port     uint32
	accepted chan *conn
	done     chan struct{}
	source   net.Listener // the framework's; guarded by hub.mu
	closing  sync.Once
}

// listen takes the guest's connections to a port of the host.
func (h *hub) listen(port uint32) (*listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, vm.ErrNotRunning
	}
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, syscall.EADDRINUSE)
	}
	l := &listener{hub: h, port: port, accepted: make(chan *conn), done: make(chan struct{})}
	if h.inst != nil {
		if err := l.open(h.inst); err != nil {
			return nil, err
		}
	}
	h.listeners[port] = l
	return l, nil
}

// open begins to listen. The caller holds hub.mu.
func (l *listener) open(inst instance) error {
	source, err := inst.listen(l.port)
	if err != nil {
		return fmt.Errorf("listen on vsock port %d: %w", l.port, err)
	}
	l.source = source
	go l.pump(source)
	return nil
}

// pump takes connections from the framework until its listener says that it was
// closed. The library's never does: it stays silent.
func (l *listener) pump(source net.Listener) {
	for {
		raw, err := source.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // concerns one connection
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
func (l *listener) Accept() (net.Conn, error) { return l.take() }

func (l *listener) take() (*conn, error) {
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
func (l *listener) Close() error {
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
func (l *listener) Addr() net.Addr { return addr(l.port) }

// addr is a port of the host.
type addr uint32

// Network implements net.Addr.
func (addr) Network() string { return "vsock" }

// String implements net.Addr.
func (a addr) String() string { return fmt.Sprintf("host(2):%d", uint32(a)) }
