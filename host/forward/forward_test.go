package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/guest/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/Microsoft/go-winio.ioCompletionProcessor")) // one for all pipes
}

func tcpListener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// vsockPair is a pair of connections as the machine's: not sockets of the kernel,
// with half-close.
type half struct {
	net.Conn
	r *io.PipeReader
	w *io.PipeWriter
}

func (h half) Read(b []byte) (int, error)  { return h.r.Read(b) }
func (h half) Write(b []byte) (int, error) { return h.w.Write(b) }
func (h half) CloseWrite() error           { return h.w.Close() }
func (h half) Close() error                { h.r.Close(); return h.w.Close() }

func vsockPair() (a, b net.Conn) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return half{r: ar, w: aw}, half{r: br, w: bw}
}

// echoAll answers with everything once the other side has ended.
func echoAll(c net.Conn) {
	defer c.Close()
	b, _ := io.ReadAll(c)
	c.Write(b)
}

func TestServe(t *testing.T) {
	data := make([]byte, 1<<20+7)
	rand.Read(data)
	echo := tcpListener(t)
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go echoAll(c)
		}
	}()
	for name, dial := range map[string]func(context.Context) (net.Conn, error){
		"kernel sockets": func(context.Context) (net.Conn, error) { return net.Dial("tcp", echo.Addr().String()) },
		"vsock": func(context.Context) (net.Conn, error) {
			a, b := vsockPair()
			go echoAll(b)
			return a, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := tcpListener(t)
			done := make(chan error, 1)
			go func() { done <- Serve(context.Background(), l, dial) }()
			for range 3 {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				go func() {
					c.Write(data)
					c.(*net.TCPConn).CloseWrite()
				}()
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
				}
				c.Close()
			}
			l.Close()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

func TestServeEndsWithContext(t *testing.T) {
	l := tcpListener(t)
	ctx, cancel := context.WithCancel(context.Background())
	dialled := make(chan net.Conn, 1)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, func(context.Context) (net.Conn, error) {
			a, b := vsockPair()
			dialled <- b
			return a, nil
		})
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far := <-dialled
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the connection still stands")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener still stands: %v", err)
	}
}

func TestServeLetsConnectionsEnd(t *testing.T) {
	l := tcpListener(t)
	done := make(chan error, 1)
	go func() {
		done <- Serve(context.Background(), l, func(context.Context) (net.Conn, error) {
			a, b := vsockPair()
			go echoAll(b)
			return a, nil
		})
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("late"))
	time.Sleep(10 * time.Millisecond) // until it is accepted
	l.Close()
	select {
	case err := <-done:
		t.Fatalf("Serve left a connection behind: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "late" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFailedDialCloses(t *testing.T) {
	l := tcpListener(t)
	done := make(chan error, 1)
	go func() {
		done <- Serve(context.Background(), l, func(context.Context) (net.Conn, error) { return nil, errors.New("no") })
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	l.Close()
	<-done
}

// One direction's failure ends the other, which would wait for ever.
func TestSpliceEndsWhenOneSideBreaks(t *testing.T) {
	a, guest := vsockPair()
	b, host := vsockPair()
	done := make(chan struct{})
	go func() { Splice(context.Background(), a, b); close(done) }()
	host.(half).r.CloseWithError(errors.New("gone")) // the host's program reads no more
	guest.Write([]byte("x"))
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Splice hangs")
	}
	guest.Close()
	host.Close()
}

func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows reads into a buffer that is there from the start")
	}
	const idle = 100
	heap := func() uint64 {
		for range 3 { // pools are emptied by the second collection
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	l := tcpListener(t)
	before := heap()
	var wg sync.WaitGroup
	var ends []net.Conn
	for range idle {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, c)
		wg.Go(func() {
			defer s.Close()
			var got bytes.Buffer
			if err := copyWaiting(&got, waitingReader(s)); err != nil || got.String() != "abc" {
				t.Errorf("%q, %v", &got, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // until they wait
	if each := int64(heap()-before) / idle; each > bufferSize/4 {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	for _, c := range ends {
		c.Write([]byte("abc"))
		c.Close()
	}
	wg.Wait()
}

func request(v any) []byte {
	var b bytes.Buffer
	wire.WriteFrame(&b, v)
	return b.Bytes()
}

func TestLoopback(t *testing.T) {
	target := tcpListener(t)
	go func() {
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			go echoAll(c)
		}
	}()
	_, port, _ := net.SplitHostPort(target.Addr().String())
	free := tcpListener(t)
	_, closed, _ := net.SplitHostPort(free.Addr().String())
	free.Close()

	secret := bytes.Repeat([]byte{7}, wire.SecretSize)
	wrong := bytes.Repeat([]byte{8}, wire.SecretSize)
	l := tcpListener(t)
	done := make(chan error, 1)
	var known atomic.Pointer[[]byte]
	known.Store(&secret)
	go func() {
		done <- Loopback{}.Serve(context.Background(), l, func() []byte { return *known.Load() })
	}()
	ask := func(preamble []byte, network, address string) (reply wire.DialReply, echoed string, err error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return reply, "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		c.Write(append(append([]byte{}, preamble...), append(request(wire.DialRequest{Network: network, Address: address}), "hello"...)...))
		if err := wire.ReadFrame(c, &reply); err != nil || reply.Error != "" {
			return reply, "", err
		}
		c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		return reply, string(b), err
	}
	for _, addr := range []string{"127.0.0.1:" + port, "localhost:" + port, "LOCALHOST.:" + port, "registry.localhost:" + port, "[::ffff:127.0.0.1]:" + port} {
		if r, echoed, err := ask(secret, "tcp", addr); err != nil || r.Error != "" || echoed != "hello" {
			t.Errorf("%s: %q, %q, %v", addr, r.Error, echoed, err)
		}
	}
	if r, _, err := ask(secret, "tcp", "127.0.0.1:"+closed); err != nil || !strings.Contains(r.Error, "refused") {
		t.Errorf("a closed port: %q, %v", r.Error, err)
	}
	for _, tc := range [][2]string{{"tcp", "10.0.0.1:80"}, {"udp", "127.0.0.1:" + port}} {
		if r, _, err := ask(secret, tc[0], tc[1]); err != nil || r.Error == "" {
			t.Errorf("%v: %q, %v", tc, r.Error, err)
		}
	}
	if _, _, err := ask(wrong, "tcp", "127.0.0.1:"+port); err == nil {
		t.Error("a wrong secret got a reply")
	}
	known.Store(new([]byte))
	if _, _, err := ask(secret, "tcp", "127.0.0.1:"+port); err == nil {
		t.Error("a secret was accepted when there is none")
	}
	l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLoopbackAddrs(t *testing.T) {
	for _, tc := range []struct{ network, addr, want string }{
		{"tcp", "localhost:5000", "127.0.0.1:5000 [::1]:5000"},
		{"tcp4", "localhost:5000", "127.0.0.1:5000"},
		{"tcp6", "localhost:5000", "[::1]:5000"},
		{"tcp", "127.9.9.9:80", "127.9.9.9:80"},
		{"tcp", "[::1]:80", "[::1]:80"},
		{"tcp6", "127.0.0.1:80", ""},
		{"tcp", "[::1%lo]:80", ""},
		{"tcp", "0.0.0.0:80", ""},
		{"tcp", "[::]:80", ""},
		{"tcp", ":80", ""},
		{"tcp", "192.168.1.1:80", ""},
		{"tcp", "example.com:80", ""},
		{"tcp", "localhost.example.com:80", ""},
		{"tcp", "notlocalhost:80", ""},
		{"tcp", "localhost:0", ""},
		{"tcp", "localhost:65536", ""},
		{"tcp", "localhost:http", ""},
		{"tcp", "localhost", ""},
		{"tcp", "", ""},
		{"unix", "/var/run/docker.sock", ""},
		{"", "localhost:80", ""},
	} {
		got, err := loopbackAddrs(wire.DialRequest{Network: tc.network, Address: tc.addr})
		var s []string
		for _, a := range got {
			s = append(s, a.String())
		}
		if strings.Join(s, " ") != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s %s: %v, %v; want %q", tc.network, tc.addr, s, err, tc.want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request(wire.DialRequest{Network: "tcp", Address: "localhost:5000"}))
	f.Add(request(wire.DialRequest{Network: "tcp6", Address: "[::1]:1"}))
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0, 16, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, err := readRequest(bytes.NewReader(b))
		if (err == nil) != (len(addrs) > 0) {
			t.Fatalf("%v, %v", addrs, err)
		}
		for _, a := range addrs {
			if !a.Addr().IsLoopback() || a.Port() == 0 {
				t.Errorf("%q leads to %s", b, a)
			}
		}
	})
}

func TestListenAndDial(t *testing.T) {
	path := filepath.Join(shortDir(t), "d.sock")
	if runtime.GOOS == "windows" {
		path = `\\.\pipe\berth-test-` + filepath.Base(t.TempDir())
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("a second listener: %v", err)
	}
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	(<-accepted).Close()
	l.Close()
	if again, err := Listen(path); err != nil {
		t.Errorf("after Close: %v", err)
	} else {
		again.Close()
	}
	for len(accepted) > 0 {
		(<-accepted).Close()
	}
}
