package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/testguest"
)

// testTransport checks the streams, all on one machine.
func testTransport(t *testing.T, b *bench) {
	x, _ := b.booted(t)
	tests := []struct {
		name string
		run  func(*testing.T, *box)
	}{
		{"Echo", testEcho},
		{"HalfClose", testHalfClose},
		{"Bulk", testBulk},
		{"Refused", testRefused},
		{"DialGivenUp", testDialGivenUp},
		{"Deadlines", testDeadlines},
		{"CloseWakes", testCloseWakes},
		{"GuestDials", testGuestDials},
		{"HostCloses", testHostCloses},
		{"ManyConns", testManyConns},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, x) })
	}
	x.stop(t, stopTimeout)
}

// echoes sends data through an echo and back.
func echoes(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(bootTimeout))
	go c.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("echo: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("the echo differs from what was sent")
	}
	c.SetDeadline(time.Time{})
}

// closeWrite ends the sending direction, which every conn must be able to.
func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	hc, ok := c.(interface{ CloseWrite() error })
	if !ok {
		t.Fatalf("%T has no CloseWrite", c)
	}
	if err := hc.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
}

func random(seed uint64, size int) []byte {
	data := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rnd.Read(data)
	return data
}

func testEcho(t *testing.T, x *box) {
	c := x.dial(t, testguest.PortEcho)
	for _, size := range []int{1, 100, 4096, 70_000} {
		echoes(t, c, random(uint64(size), size))
	}
	if c.LocalAddr() == nil || c.RemoteAddr() == nil {
		t.Error("a connection has no addresses")
	}
}

func testHalfClose(t *testing.T, x *box) {
	c := x.dial(t, testguest.PortEcho)
	c.SetDeadline(time.Now().Add(bootTimeout))
	if _, err := io.WriteString(c, "last words"); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, c)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "last words" {
		t.Errorf("after CloseWrite: read %q, %v", got, err)
	}
	if _, err := c.Write([]byte("more")); err == nil {
		t.Error("Write after CloseWrite succeeded")
	}
}

func testBulk(t *testing.T, x *box) {
	const size = 4 << 20
	c := x.dial(t, testguest.PortEcho)
	c.SetDeadline(time.Now().Add(bootTimeout))
	data := random(1, size)
	go func() {
		c.Write(data)
		closeWrite(t, c)
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, c)
	if err != nil || n != size {
		t.Fatalf("%d of %d bytes came back: %v", n, size, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("the bytes that came back differ")
	}
}

func testRefused(t *testing.T, x *box) {
	begin := time.Now()
	c, err := x.Dial(t.Context(), 4242)
	if err == nil {
		c.Close()
		t.Fatal("Dial to a port nobody listens on succeeded")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Dial to a port nobody listens on: %v", err)
	}
	if took := time.Since(begin); took > killTimeout {
		t.Errorf("the refusal took %v", took)
	}
}

func testDialGivenUp(t *testing.T, x *box) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	c, err := x.Dial(gone, testguest.PortEcho)
	if err == nil {
		c.Close()
		t.Fatal("Dial with a cancelled context succeeded")
	}
	wantErr(t, "Dial with a cancelled context", err, context.Canceled)
}

func testDeadlines(t *testing.T, x *box) {
	c := x.dial(t, testguest.PortEcho)
	buf := make([]byte, 16)
	timesOut := func(what string) {
		t.Helper()
		_, err := c.Read(buf)
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: Read = %v, want a timeout", what, err)
		}
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	timesOut("deadline in the past")
	c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	timesOut("deadline ahead")
	time.AfterFunc(30*time.Millisecond, func() { c.SetReadDeadline(time.Now()) })
	c.SetReadDeadline(time.Time{})
	timesOut("deadline moved while reading")
	c.SetDeadline(time.Time{})
	echoes(t, c, []byte("still alive"))

	// The echo stops reading once nobody takes what it returns, so writes fill
	// every buffer on the way and then have to time out.
	c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	chunk, sent := make([]byte, 1<<20), 0
	for {
		n, err := c.Write(chunk)
		if sent += n; err != nil {
			wantErr(t, "Write to a full stream", err, os.ErrDeadlineExceeded)
			break
		}
		if sent > 1<<30 {
			t.Fatal("a stream that nobody reads took 1 GiB")
		}
	}
}

func testCloseWakes(t *testing.T, x *box) {
	c := x.dial(t, testguest.PortEcho)
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case err := <-read:
		wantErr(t, "Read during Close", err, net.ErrClosed)
	case <-time.After(killTimeout):
		t.Fatal("Read does not return after Close")
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close = %v", err)
	}
}

func testGuestDials(t *testing.T, x *box) {
	if answer := x.order(t, "dial 3000"); answer == "ok" {
		t.Error("the guest could dial a port on which the host does not listen")
	}
	l, err := x.Listen(3000)
	if err != nil {
		t.Fatal(err)
	}
	if answer := x.order(t, "dial 3000"); answer != "ok" {
		t.Fatalf("the guest cannot dial the host: %s", answer)
	}
	c := accept(t, l, killTimeout)
	echoes(t, c, random(2, 100_000))
	if err := l.Close(); err != nil {
		t.Errorf("Listener.Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v, want %v", err, net.ErrClosed)
	}
	echoes(t, c, []byte("a connection outlives its listener"))
	if answer := x.order(t, "dial 3000"); answer == "ok" {
		t.Error("the guest could dial a port that the host has closed")
	}
}

// testHostCloses leaves connections with data under way; the next ones must not
// suffer.
func testHostCloses(t *testing.T, x *box) {
	for i := range 10 {
		c := x.dial(t, testguest.PortEcho)
		if _, err := c.Write(random(uint64(i), 50_000)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	echoes(t, x.dial(t, testguest.PortEcho), random(3, 50_000))
}

func testManyConns(t *testing.T, x *box) {
	const conns, size = 50, 20_000
	var wg sync.WaitGroup
	fails := make(chan error, conns)
	for i := range conns {
		wg.Go(func() { fails <- exchange(t.Context(), x, uint64(i), size) })
	}
	wg.Wait()
	for range conns {
		if err := <-fails; err != nil {
			t.Error(err)
		}
	}
}

// exchange sends its own bytes through one connection and back.
func exchange(ctx context.Context, m vm.Transport, seed uint64, size int) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	c, err := m.Dial(ctx, testguest.PortEcho)
	if err != nil {
		return fmt.Errorf("connection %d: %w", seed, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bootTimeout))
	data := random(seed, size)
	go c.Write(data)
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("connection %d: %w", seed, err)
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("connection %d: got another's bytes", seed)
	}
	return nil
}

func isClosed(err error) bool { return errors.Is(err, vm.ErrClosed) }
