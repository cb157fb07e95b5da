package network

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/network/internal/link"
)

// TestLendLoopback: what a container connects to on its loopback is elsewhere, as
// long as the container is there.
func TestLendLoopback(t *testing.T) {
	m := newMachine(t)
	far, err := net.Listen("tcp", "127.0.0.1:0")
	m.must(err)
	defer far.Close()
	go func() { // an echo, after the end of what comes
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				text, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(text))
			}()
		}
	}()
	var mu sync.Mutex
	var asked []netip.AddrPort
	lend := func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if to.Port() == 1 {
			return nil, errors.New("nobody is there")
		}
		asked = append(asked, to)
		return net.Dial("tcp", far.Addr().String())
	}

	if err := m.LendLoopback("none-0123456789abcdef", lend); err == nil {
		t.Error("a container that is not there was lent a loopback")
	}
	c, other := m.container("a", Bridge), m.container("b", Bridge)
	m.must(m.LendLoopback(c.id, lend))
	if err := m.LendLoopback(c.id, lend); err == nil {
		t.Error("a container was lent two loopbacks")
	}
	connect := func(to string) *net.TCPConn {
		t.Helper()
		var conn net.Conn
		do(t, c.ns, func() (err error) {
			conn, err = dialHere(to)
			return err
		})
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		return conn.(*net.TCPConn)
	}
	for _, to := range []string{"127.0.0.1:80", "127.9.8.7:8443", "[::1]:8080"} {
		conn := connect(to)
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); string(got) != "HELLO" {
			t.Errorf("%s says %q, %v", to, got, err)
		}
		conn.Close()
	}
	mu.Lock()
	if want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("127.9.8.7:8443"), netip.MustParseAddrPort("[::1]:8080")}; !slices.Equal(asked, want) {
		t.Errorf("dialed %v, want %v", asked, want)
	}
	mu.Unlock()
	for _, to := range []string{"127.0.0.1:1", "[::1]:1"} {
		if err := c.ns.Do(func() error {
			conn, err := dialHere(to)
			if err != nil {
				return err // the reset was as quick
			}
			defer conn.Close()
			_, err = conn.Read(make([]byte, 1))
			return err
		}); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("where nobody is, a connection to %s says %v: want a reset", to, err)
		}
	}
	if from, err := dial(other.ns, "tcp", "127.0.0.1:80"); err == nil {
		t.Errorf("another container got through to the loopback, from %s", from)
	}

	open := connect("127.0.0.1:80")
	defer open.Close()
	open.Write([]byte("x"))
	c.release()
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the loan")
	}
}

// TestLendLoopbackWithoutIPv6: a container without IPv6 is lent what it has.
func TestLendLoopbackWithoutIPv6(t *testing.T) {
	m := newMachine(t)
	c := m.container("a", Bridge)
	do(t, c.ns, func() error { return link.Sysctl("ipv6/conf/lo/disable_ipv6", "1") })
	asked := make(chan netip.AddrPort, 1)
	m.must(m.LendLoopback(c.id, func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
		asked <- to
		return nil, errors.New("nobody is there")
	}))
	do(t, c.ns, func() error {
		conn, err := dialHere("127.0.0.1:80")
		if err == nil {
			conn.Close()
		}
		return nil // it may have been reset by now
	})
	if got := <-asked; got != netip.MustParseAddrPort("127.0.0.1:80") {
		t.Errorf("dialed %v", got)
	}
}
