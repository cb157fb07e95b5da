package virtiovsock

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
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

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func dial(t testing.TB, d *Device, port uint32) halfCloser {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	return c.(halfCloser)
}

func accept(t testing.TB, l net.Listener) halfCloser {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(halfCloser)
}

func listen(t testing.TB, d *Device, port uint32) net.Listener {
	t.Helper()
	l, err := d.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func randomBytes(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
	return b[:n]
}

// within fails the test when do takes too long: a hang is this package's most
// likely fault.
func within(t testing.TB, d time.Duration, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s hangs", what)
	}
}

// rings are the shapes of rings that every data test runs over.
var rings = map[string]guestConfig{
	"plain":     {},
	"event":     {features: vhosttest.FeatureEventIdx},
	"indirect":  {features: vhosttest.FeatureIndirect},
	"linux":     {features: vhosttest.FeatureEventIdx | vhosttest.FeatureIndirect},
	"small":     {features: vhosttest.FeatureEventIdx, ringSize: 8, rxBuffer: 200},
	"tiny-wins": {bufAlloc: 5000, rxBuffer: 1000},
}

// echo sends data one way, ends that way, and expects it back.
func echo(c interface {
	io.ReadWriteCloser
	CloseWrite() error
}, n int) error {
	data := randomBytes(n)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	h := sha256.New()
	got, err := io.Copy(h, struct{ io.Reader }{c})
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%d of %d bytes came back, or others", got, n)
	}
	return c.Close()
}

func TestEcho(t *testing.T) {
	const conns, size = 50, 100 << 10
	for name, cfg := range rings {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, cfg)
			g.handle(7, func(c *guestConn) {
				if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err != nil {
					t.Errorf("guest: %v", err)
				}
				c.CloseWrite()
			})
			l := listen(t, g.dev, 9)
			var wg sync.WaitGroup
			wg.Go(func() {
				for range conns {
					c := accept(t, l)
					wg.Go(func() {
						if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}); err != nil {
							t.Errorf("host: %v", err)
						}
						c.CloseWrite()
						if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
							t.Errorf("read after the end: %d, %v", n, err)
						}
						c.Close()
					})
				}
			})
			for range conns {
				wg.Go(func() {
					if err := echo(dial(t, g.dev, 7), size); err != nil {
						t.Errorf("from host: %v", err)
					}
				})
				wg.Go(func() {
					c, err := g.dial(9)
					if err == nil {
						err = echo(c, size)
					}
					if err != nil {
						t.Errorf("from guest: %v", err)
					}
				})
			}
			within(t, 30*time.Second, "echo", wg.Wait)
			checkEmpty(t, g.dev)
		})
	}
}

// checkEmpty checks that nothing is left of any connection.
func checkEmpty(t testing.TB, d *Device) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		d.mu.Lock()
		conns, guest, promised, replies := len(d.conns)+d.hostConns, d.guestConns, d.promised, len(d.replies)
		d.mu.Unlock()
		if conns == 0 && guest == 0 && promised == 0 && replies == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections, %d of the guest, %d bytes promised, %d replies are left", conns, guest, promised, replies)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRefused(t *testing.T) {
	d := New(Options{GuestCID: testCID})
	if _, err := d.Dial(context.Background(), 7); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before the driver: %v", err)
	}
	g := startGuestOn(t, d, guestConfig{})
	if _, err := d.Dial(context.Background(), 7); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	if _, err := g.dial(9); err == nil {
		t.Error("the guest got a connection to a closed port")
	}
	l := listen(t, d, 9)
	if _, err := d.Listen(9); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second Listen: %v", err)
	}
	l.Close()
	if _, err := g.dial(9); err == nil {
		t.Error("the guest got a connection to a closed listener")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	listen(t, d, 9)
	checkEmpty(t, d)
}

func TestAddresses(t *testing.T) {
	g := startGuest(t, guestConfig{})
	l := listen(t, g.dev, 9)
	c, err := g.dial(9)
	if err != nil {
		t.Fatal(err)
	}
	h := accept(t, l)
	if got, want := h.RemoteAddr(), (Addr{testCID, c.key.guest}); got != want {
		t.Errorf("remote %v, want %v", got, want)
	}
	if got := h.LocalAddr().String() + " " + h.LocalAddr().Network(); got != "2:9 vsock" {
		t.Errorf("local %v", got)
	}
	if got := l.Addr(); got != (Addr{HostCID, 9}) {
		t.Errorf("listener %v", got)
	}
}

// TestGoneBeforeAccept: what a guest said before it hung up is not lost, however
// late the host looks at it.
func TestGoneBeforeAccept(t *testing.T) {
	g := startGuest(t, guestConfig{})
	l := listen(t, g.dev, 9)
	c, err := g.dial(9)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("good-bye"))
	c.Close()
	h := accept(t, l)
	if b, err := io.ReadAll(h); string(b) != "good-bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := h.Write([]byte("?")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write: %v", err)
	}
	h.Close()
	checkEmpty(t, g.dev)
}

func TestBacklog(t *testing.T) {
	g := startGuest(t, guestConfig{})
	l := listen(t, g.dev, 9)
	for i := range backlog {
		if _, err := g.dial(9); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := g.dial(9); err == nil {
		t.Error("backlog without end")
	}
	accept(t, l).Close()
	if _, err := g.dial(9); err != nil {
		t.Errorf("after an Accept: %v", err)
	}
	l.Close()
	checkEmpty(t, g.dev)
}

// TestComeAndGo: a guest that leaves its data behind again and again runs out of
// connections before the host runs out of memory.
func TestComeAndGo(t *testing.T) {
	g := startGuest(t, guestConfig{})
	l := listen(t, g.dev, 9)
	var held []net.Conn
	for {
		c, err := g.dial(9)
		if err != nil {
			break
		}
		c.Write(make([]byte, 1000))
		c.Close()
		held = append(held, accept(t, l))
		if len(held) > maxGuestConns {
			t.Fatal("connections without end")
		}
	}
	for _, c := range held {
		if b, err := io.ReadAll(c); len(b) != 1000 || err != nil {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		c.Close()
	}
	for range 3 { // to be left in the backlog
		c, err := g.dial(9)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	l.Close()
	checkEmpty(t, g.dev)
}

func TestGuestConnLimit(t *testing.T) {
	g := startGuest(t, guestConfig{})
	l := listen(t, g.dev, 9)
	var held []net.Conn
	for range maxGuestConns {
		if _, err := g.dial(9); err != nil {
			t.Fatal(err)
		}
		held = append(held, accept(t, l))
	}
	if _, err := g.dial(9); err == nil {
		t.Error("connections without end")
	}
	g.dev.mu.Lock()
	promised := g.dev.promised
	g.dev.mu.Unlock()
	if most := bufferBudget + maxGuestConns*bufferSmall; promised > most {
		t.Errorf("promised %d bytes, more than %d", promised, most)
	}
	g.handle(7, func(c *guestConn) { c.Close() })
	if _, err := io.ReadAll(dial(t, g.dev, 7)); err != nil {
		t.Errorf("the guest's connections use up the host's: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
}

func TestDeadlines(t *testing.T) {
	g := startGuest(t, guestConfig{})
	peer := make(chan *guestConn, 1)
	g.handle(7, func(c *guestConn) { peer <- c })
	c := dial(t, g.dev, 7)
	p := <-peer
	isTimeout := func(err error) bool {
		var ne net.Error
		return errors.Is(err, os.ErrDeadlineExceeded) && errors.As(err, &ne) && ne.Timeout()
	}
	within(t, 5*time.Second, "deadline", func() {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("Read: %v", err)
		}
		c.SetReadDeadline(time.Now().Add(-time.Second))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("Read after the deadline: %v", err)
		}
		// The guest reads nothing: its credit runs out.
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Write(make([]byte, 1<<20)); n != int(g.cfg.bufAlloc) || !isTimeout(err) {
			t.Errorf("Write: %d, %v", n, err)
		}
		c.SetDeadline(time.Time{})
		go io.Copy(io.Discard, struct{ io.Reader }{p})
		if n, err := c.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
			t.Errorf("Write without deadline: %d, %v", n, err)
		}
		p.Write([]byte("x"))
		if n, err := c.Read(make([]byte, 9)); n != 1 || err != nil {
			t.Errorf("Read without deadline: %d, %v", n, err)
		}
		time.AfterFunc(20*time.Millisecond, func() { c.SetReadDeadline(time.Now()) })
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("Read under a deadline set meanwhile: %v", err)
		}
		time.AfterFunc(20*time.Millisecond, func() { c.Close() })
		c.SetReadDeadline(time.Time{})
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read under Close: %v", err)
		}
	})
}

func TestClosed(t *testing.T) {
	g := startGuest(t, guestConfig{})
	g.handle(7, func(c *guestConn) { io.Copy(io.Discard, struct{ io.Reader }{c}) })
	c := dial(t, g.dev, 7)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, readErr := c.Read(make([]byte, 1))
	_, writeErr := c.Write(make([]byte, 1))
	for i, err := range []error{readErr, writeErr, c.Close(), c.CloseWrite(), c.SetDeadline(time.Now())} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("call %d on a closed connection: %v", i, err)
		}
	}
	checkEmpty(t, g.dev)
}

// TestCloseKeepsData: what was written before Close reaches a slow reader.
func TestCloseKeepsData(t *testing.T) {
	g := startGuest(t, guestConfig{})
	got := make(chan []byte, 1)
	g.handle(7, func(c *guestConn) {
		time.Sleep(50 * time.Millisecond)
		b, _ := io.ReadAll(struct{ io.Reader }{c})
		got <- b
	})
	c := dial(t, g.dev, 7)
	data := randomBytes(200 << 10)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if b := <-got; !bytes.Equal(b, data) {
		t.Errorf("%d of %d bytes arrived", len(b), len(data))
	}
	checkEmpty(t, g.dev)
}

// TestCredit: a host that does not read makes the guest wait, and nobody else.
func TestCredit(t *testing.T) {
	g := startGuest(t, guestConfig{})
	slow := make(chan int, 1)
	g.handle(7, func(c *guestConn) {
		n, _ := c.Write(make([]byte, 2<<20))
		c.CloseWrite()
		slow <- n
	})
	g.handle(8, func(c *guestConn) {
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		c.CloseWrite()
	})
	c := dial(t, g.dev, 7)
	time.Sleep(50 * time.Millisecond)
	if len(slow) != 0 {
		t.Error("the guest wrote more than its credit")
	}
	within(t, 10*time.Second, "another connection", func() {
		if err := echo(dial(t, g.dev, 8), 1<<20); err != nil {
			t.Error(err)
		}
	})
	within(t, 10*time.Second, "slow reader", func() {
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); n != 2<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	if n := <-slow; n != 2<<20 {
		t.Errorf("guest wrote %d", n)
	}
}

func TestReboot(t *testing.T) {
	g := startGuest(t, rings["linux"])
	serve := func(c *guestConn) {
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		c.CloseWrite()
	}
	g.handle(7, serve)
	l := listen(t, g.dev, 9)
	for i := range 5 {
		c := dial(t, g.dev, 7)
		if _, err := g.dial(9); err != nil {
			t.Fatal(err)
		}
		reads := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			reads <- err
		}()
		if i%2 == 0 {
			g.dev.Reset() // late, or early: the driver still runs
		}
		g.reboot()
		if err := <-reads; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read over a reboot: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Write over a reboot: %v", err)
		}
		if err := echo(dial(t, g.dev, 7), 100<<10); err != nil {
			t.Errorf("after reboot: %v", err)
		}
		gc, err := g.dial(9)
		if err != nil {
			t.Fatal(err)
		}
		if got := accept(t, l).RemoteAddr(); got != (Addr{testCID, gc.key.guest}) {
			t.Errorf("the backlog still has %v", got)
		}
	}
}

// TestResetHook: between a reset and the driver's start nothing hangs once the
// owner has said what happened.
func TestResetHook(t *testing.T) {
	g := startGuest(t, guestConfig{})
	g.handle(7, func(c *guestConn) {})
	c := dial(t, g.dev, 7)
	g.halt()
	g.fe.Stop(g.rx, g.tx)
	g.dev.Reset()
	within(t, time.Second, "a connection", func() {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read: %v", err)
		}
		if _, err := g.dev.Dial(context.Background(), 7); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial: %v", err)
		}
	})
}

func TestPause(t *testing.T) {
	for name, cfg := range rings {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, cfg)
			g.handle(7, func(c *guestConn) {
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				c.CloseWrite()
			})
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if err := echo(dial(t, g.dev, 7), 300<<10); err != nil {
						t.Error(err)
					}
				})
			}
			for range 10 {
				time.Sleep(2 * time.Millisecond)
				g.pause()
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				if _, err := g.dev.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Dial of a paused guest: %v", err)
				}
				cancel()
				g.resume()
			}
			within(t, 20*time.Second, "echo over pauses", wg.Wait)
			checkEmpty(t, g.dev)
		})
	}
}

// TestLiveChanges: QEMU replaces call eventfds and the memory table under rings
// that run.
func TestLiveChanges(t *testing.T) {
	g := startGuest(t, rings["linux"])
	g.handle(7, func(c *guestConn) {
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		c.CloseWrite()
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := echo(dial(t, g.dev, 7), 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	for range 50 {
		g.rx.SwapCall()
		g.tx.SwapCall()
		table, fds := g.fe.MemTable()
		g.fe.Do(vhosttest.SetMemTable, table, fds...)
	}
	within(t, 20*time.Second, "echo", wg.Wait)
}

func TestServeEnds(t *testing.T) {
	t.Run("hang-up", func(t *testing.T) {
		g := startGuest(t, guestConfig{})
		g.handle(7, func(c *guestConn) {})
		c := dial(t, g.dev, 7)
		g.fe.Close()
		within(t, 5*time.Second, "Read", func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read: %v", err)
			}
		})
		if _, err := g.dev.Dial(context.Background(), 7); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial: %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		g := startGuest(t, guestConfig{})
		l := listen(t, g.dev, 9)
		g.dev.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		if _, err := g.dev.Dial(context.Background(), 7); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Dial: %v", err)
		}
		if _, err := g.dev.Listen(10); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Listen: %v", err)
		}
		if err := g.dev.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		g := startGuest(t, guestConfig{})
		_, back := vhosttest.Pair(t)
		if err := g.dev.Serve(context.Background(), back); err == nil {
			t.Error("two front-ends")
		}
		g.handle(7, func(c *guestConn) { c.Close() })
		dial(t, g.dev, 7).Close()
	})
	t.Run("context", func(t *testing.T) {
		d := New(Options{GuestCID: testCID})
		_, back := vhosttest.Pair(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := d.Serve(ctx, back); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestDialContext(t *testing.T) {
	g := startGuest(t, guestConfig{raw: true})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.dev.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial of a port that does not answer: %v", err)
	}
	if p := g.next(); p.op != opRequest || p.dstPort != 7 {
		t.Errorf("got %+v", p.header)
	}
	if p := g.next(); p.op != opReset {
		t.Errorf("got %+v instead of the end of it", p.header)
	}
	checkEmpty(t, g.dev)
}

func BenchmarkToGuest(b *testing.B) {
	g := startGuest(b, rings["linux"])
	g.handle(7, func(c *guestConn) { io.Copy(io.Discard, struct{ io.Reader }{c}) })
	c := dial(b, g.dev, 7)
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
