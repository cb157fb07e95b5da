package serialport

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire/muxed"
)

// plugged returns a port and a guest's end of the cable.
func plugged(t *testing.T) (*Port, net.Conn) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the cable is a unix socket")
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	guest, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := New(nil)
	served := make(chan error, 1)
	go func() { served <- p.Serve(context.Background(), host) }()
	t.Cleanup(func() {
		guest.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		p.Close()
	})
	return p, guest
}

// boot makes a guest's session; its streams return every byte.
func boot(t *testing.T, cable net.Conn) *muxed.Session {
	t.Helper()
	r := bufio.NewReader(cable)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := muxed.Greet(ctx, r, cable, rand.Reader); err != nil {
		t.Fatal(err)
	}
	s := muxed.NewSession(muxed.Guest, r, cable, func(in *muxed.Incoming) {
		c := in.Accept()
		go func() {
			defer c.Close()
			io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}()
	})
	t.Cleanup(func() { s.End(nil) })
	return s
}

// halt ends a guest's session where it stands, and leaves the cable as it is.
func halt(t *testing.T, s *muxed.Session, cable net.Conn) {
	t.Helper()
	s.End(nil)
	cable.SetDeadline(time.Now())
	s.Wait()
	cable.SetDeadline(time.Time{})
}

func mustEcho(t *testing.T, p *Port) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err = p.Dial(t.Context(), 5); !errors.Is(err, syscall.ECONNREFUSED) {
			break // the host may not have taken the handshake's end yet
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRestarts(t *testing.T) {
	p, cable := plugged(t)
	if _, err := p.Dial(t.Context(), 5); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial before there is a guest: %v", err)
	}
	l, err := p.Listen(9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Listen(9); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second Listen: %v", err)
	}
	var before net.Conn
	for range 4 {
		s := boot(t, cable)
		c := mustEcho(t, p)
		if before != nil {
			if _, err := before.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a stream of the boot before: %v", err)
			}
		}
		before = c
		dialed, err := s.Dial(t.Context(), 9)
		if err != nil {
			t.Fatal(err)
		}
		taken, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		dialed.Write([]byte("hello"))
		dialed.CloseWrite()
		if got, err := io.ReadAll(taken); err != nil || string(got) != "hello" {
			t.Errorf("the guest's stream: %q, %v", got, err)
		}
		if _, err := s.Dial(t.Context(), 10); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the guest dials a port nobody listens on: %v", err)
		}
		halt(t, s, cable)
	}
}

// TestReset has the word of a reset come in time, and too late.
func TestReset(t *testing.T) {
	p, cable := plugged(t)
	s := boot(t, cable)
	c := mustEcho(t, p)
	long := time.Now().Add(-time.Hour)
	p.Reset(long)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("a reset before the session broke it: %v", err)
	}
	p.Reset(time.Now())
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}
	halt(t, s, cable)
	boot(t, cable)
	mustEcho(t, p)
}

func TestClose(t *testing.T) {
	p, cable := plugged(t)
	s := boot(t, cable)
	mustEcho(t, p)
	l, err := p.Listen(9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Dial(t.Context(), 9); err != nil { // which nobody accepts
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	l2, err := p.Listen(10)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := l2.Accept()
		accepted <- err
	}()
	p.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept during Close: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close of a closed listener: %v", err)
	}
	if _, err := p.Listen(11); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Listen after Close: %v", err)
	}
}

func TestBacklog(t *testing.T) {
	p, cable := plugged(t)
	s := boot(t, cable)
	l, err := p.Listen(9)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range backlog {
		if _, err := s.Dial(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Dial(t.Context(), 9); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("one more than the backlog: %v", err)
	}
}
