package hub

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/berthvm/berth/vm"
)

// wire is a carrier of connections in memory. A silent one's listeners do not
// notice that they are closed, as Virtualization.framework's.
type wire struct {
	silent bool
	mu     sync.Mutex
	open   map[uint32]*source
}

type source struct {
	silent bool
	conns  chan net.Conn
	closed chan struct{}
}

func (w *wire) Dial(context.Context, uint32) (net.Conn, error) {
	near, far := net.Pipe()
	go io.Copy(far, far)
	return near, nil
}

func (w *wire) Listen(port uint32) (net.Listener, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &source{silent: w.silent, conns: make(chan net.Conn), closed: make(chan struct{})}
	w.open[port] = s
	return s, nil
}

// call is the guest's dialling.
func (w *wire) call(port uint32) net.Conn {
	w.mu.Lock()
	s := w.open[port]
	w.mu.Unlock()
	near, far := net.Pipe()
	s.conns <- near
	return far
}

func (s *source) Accept() (net.Conn, error) {
	if s.silent {
		return <-s.conns, nil
	}
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}
func (s *source) Close() error { close(s.closed); return nil }
func (*source) Addr() net.Addr { return nil }

type half struct{ net.Conn }

func (half) CloseWrite() error { return nil }

func newHub() *Hub {
	return New(func(c net.Conn) Stream { return half{c} }, slog.New(slog.DiscardHandler))
}

func ended(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%s: the stream goes on", what)
	}
}

func TestRestart(t *testing.T) {
	h, first, second := newHub(), &wire{open: map[uint32]*source{}}, &wire{open: map[uint32]*source{}}
	if _, err := h.Dial(t.Context(), 1); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Dial before Attach = %v", err)
	}
	l, err := h.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Listen(5); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second Listen = %v", err)
	}
	if err := h.Attach(first); err != nil {
		t.Fatal(err)
	}
	dialled, err := h.Dial(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	go first.call(5)
	accepted, err := l.Take()
	if err != nil {
		t.Fatal(err)
	}
	h.Reset(accepted)
	ended(t, "after Reset", dialled)
	if err := h.Attach(second); err != nil {
		t.Fatal(err)
	}
	<-first.open[5].closed
	caller := make(chan net.Conn, 1)
	go func() { caller <- second.call(5) }()
	again, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	ended(t, "after Close", accepted)
	ended(t, "after Close", again)
	ended(t, "the guest's end after Close", <-caller)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v", err)
	}
	if err := h.Attach(first); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Attach after Close = %v", err)
	}
	if _, err := h.Listen(6); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Listen after Close = %v", err)
	}
	if _, err := h.Dial(t.Context(), 1); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Dial after Close = %v", err)
	}
}

func TestAcceptReturnsAfterClose(t *testing.T) {
	h, w := newHub(), &wire{silent: true, open: map[uint32]*source{}}
	if err := h.Attach(w); err != nil {
		t.Fatal(err)
	}
	l, err := h.Listen(5)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	s := w.open[5]
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v", err)
	}
	<-s.closed
	near, far := net.Pipe()
	s.conns <- near // a connection that was on its way must not stay open
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read of a connection to a closed listener = %v, want EOF", err)
	}
	if _, err := h.Listen(5); err != nil {
		t.Errorf("Listen on a port that was closed: %v", err)
	}
}
