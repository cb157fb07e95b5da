package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire/muxed"
)

// serial is the guest's side of a serial port with streams.
type serial struct {
	mu        sync.Mutex // guards what follows
	session   *muxed.Session
	listeners map[uint32]*serialListener
}

// openSerial finds the port and shakes hands.
func openSerial() (*serial, error) {
	var name string
	for range 500 {
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == muxed.PortName {
				name = "/dev/" + filepath.Base(filepath.Dir(file))
			}
		}
		if name != "" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	port, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("serial port: %w", err)
	}
	r := bufio.NewReader(port)
	s := &serial{listeners: map[uint32]*serialListener{}}
	if err := s.begin(r, port); err != nil {
		return nil, err
	}
	go func() { // a machine that was saved goes on with another host
		for {
			s.now().Wait()
			if err := s.begin(r, port); err != nil {
				fmt.Println("testguest:", err)
				return
			}
		}
	}()
	return s, nil
}

// begin shakes hands and begins a session.
func (s *serial) begin(r *bufio.Reader, port *os.File) error {
	if err := muxed.Greet(context.Background(), r, port, rand.Reader); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = muxed.NewSession(muxed.Guest, r, port, s.incoming)
	return nil
}

func (s *serial) now() *muxed.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

func (s *serial) incoming(in *muxed.Incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.listeners[in.Port]
	if l == nil || len(l.queue) == cap(l.queue) {
		in.Refuse()
		return
	}
	l.queue <- in.Accept()
}

// Dial implements testguest.Transport.
func (s *serial) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := s.now().Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listen implements testguest.Transport.
func (s *serial) Listen(port uint32) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners[port] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &serialListener{s, port, make(chan net.Conn, 256), make(chan struct{})}
	s.listeners[port] = l
	return l, nil
}

// serialListener is a net.Listener. It is closed once.
type serialListener struct {
	serial *serial
	port   uint32
	queue  chan net.Conn
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *serialListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *serialListener) Close() error {
	l.serial.mu.Lock()
	defer l.serial.mu.Unlock()
	delete(l.serial.listeners, l.port)
	close(l.closed)
	return nil
}

// Addr implements net.Listener.
func (l *serialListener) Addr() net.Addr { return muxed.Addr(l.port) }
