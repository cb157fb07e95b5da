// Package serialport is a machine's vsock where it has none: the host's end of one
// virtio-serial port, whose bytes guest/wire/muxed makes streams of. It knows
// nothing of QEMU but that it is a connection.
//
// A guest that restarts begins a new session with a handshake, and the streams of
// the old one break: at the latest when the handshake arrives in the midst of it,
// or with Reset. Listeners stay.
package serialport

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/berthvm/berth/guest/wire/muxed"
)

// backlog is how many streams a listener holds that nobody has accepted.
const backlog = 128

// Port is the host's end. Its methods are safe for concurrent use.
type Port struct {
	log *slog.Logger

	mu        sync.Mutex // guards what follows
	listeners map[uint32]*listener
	session   *session // nil without a guest
	resumed   bool
	closed    bool
}

// session is what muxed knows, with what the host has to.
type session struct {
	*muxed.Session
	since time.Time
}

// New returns a port that nobody is connected to yet. A nil log drops what would
// be logged.
func New(log *slog.Logger) *Port {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Port{log: log, listeners: map[uint32]*listener{}}
}

// Resume says, before Serve, that the guest takes itself to be in a session with
// another port: its machine was saved.
func (p *Port) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumed = true
}

// Serve carries the streams over conn, which is QEMU's end of the port, until conn
// ends or ctx does. It closes conn. It may be called once.
func (p *Port) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	p.mu.Lock()
	resumed := p.resumed
	p.mu.Unlock()
	if resumed {
		if err := muxed.Interrupt(conn); err != nil {
			return hungUp(err)
		}
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		if err := muxed.Answer(r, conn, rand.Reader); err != nil {
			return hungUp(err)
		}
		err := p.serve(r, conn)
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return hungUp(err)
		}
		p.log.Debug("the guest's streams are broken", "reason", err)
	}
}

// hungUp is nil for the end that a machine's power-off makes.
func hungUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// serve runs one session, until it is broken. Nobody touches conn afterwards.
func (p *Port) serve(r *bufio.Reader, conn net.Conn) error {
	s := &session{muxed.NewSession(muxed.Host, r, conn, p.incoming), time.Now()}
	p.mu.Lock()
	p.session = s
	if p.closed {
		s.End(net.ErrClosed)
	}
	p.mu.Unlock()
	<-s.Done()
	conn.SetDeadline(time.Now()) // or it would wait for the guest
	err := s.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session = nil
	for _, l := range p.listeners {
		l.drop()
	}
	return err
}

// incoming hands a stream of the guest's to the listener.
func (p *Port) incoming(in *muxed.Incoming) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.listeners[in.Port]
	if l == nil || len(l.queue) >= backlog {
		in.Refuse()
		return
	}
	l.queue = append(l.queue, in.Accept())
	l.arrived.Signal()
}

// Reset breaks the streams: the guest was reset at that time. A session that has
// begun since is not meant.
func (p *Port) Reset(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session != nil && p.session.since.Before(at) {
		p.session.End(syscall.ECONNRESET)
	}
}

// Dial connects to a port on which the guest listens. It fails with ECONNREFUSED
// also while the guest is not there yet.
func (p *Port) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	p.mu.Lock()
	s := p.session
	p.mu.Unlock()
	if s == nil {
		return nil, opError("dial", port, syscall.ECONNREFUSED)
	}
	c, err := s.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listen takes the guest's connections to a host port. It needs no running guest
// and outlives restarts of the guest. A second Listen on an open port fails with
// EADDRINUSE. Connections beyond a backlog of 128 are refused.
func (p *Port) Listen(port uint32) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, opError("listen", port, net.ErrClosed)
	case p.listeners[port] != nil:
		return nil, opError("listen", port, syscall.EADDRINUSE)
	}
	l := &listener{port: p, number: port, arrived: sync.Cond{L: &p.mu}}
	p.listeners[port] = l
	return l, nil
}

// Close breaks all streams and closes all listeners, for good. Serve goes on until
// its connection ends.
func (p *Port) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.session != nil {
		p.session.End(net.ErrClosed)
	}
	for _, l := range p.listeners {
		l.close()
	}
}

// listener is a net.Listener. The port's mu guards what changes.
type listener struct {
	port    *Port
	number  uint32
	closed  bool
	queue   []*muxed.Stream // not accepted yet
	arrived sync.Cond
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.port.mu.Lock()
	defer l.port.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.arrived.Wait()
	}
	if l.closed {
		return nil, opError("accept", l.number, net.ErrClosed)
	}
	c := l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	return c, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.port.mu.Lock()
	defer l.port.mu.Unlock()
	if l.closed {
		return opError("close", l.number, net.ErrClosed)
	}
	l.close()
	return nil
}

func (l *listener) close() {
	l.closed = true
	delete(l.port.listeners, l.number)
	l.drop()
	l.arrived.Broadcast()
}

// drop closes the streams that nobody has accepted.
func (l *listener) drop() {
	for _, c := range l.queue {
		c.Close()
	}
	l.queue = nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return muxed.Addr(l.number) }

func opError(op string, port uint32, err error) error {
	return &net.OpError{Op: op, Net: muxed.Addr(port).Network(), Addr: muxed.Addr(port), Err: err}
}
