package publish

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// host plays the machine's host on unix sockets.
type host struct {
	publish, portal net.Listener
	closed          chan struct{} // gets a value when a publish stream ends
	asked           chan net.Conn // gets each publish stream, while there is room
	networks        chan string   // gets what each of them is for
	used            atomic.Int32
}

func newHost(t *testing.T, secret []byte) (*host, *Publisher) {
	t.Helper()
	dir := t.TempDir()
	h := &host{closed: make(chan struct{}, 10), asked: make(chan net.Conn, 10), networks: make(chan string, 10)}
	for name, l := range map[string]*net.Listener{"publish": &h.publish, "portal": &h.portal} {
		var err error
		if *l, err = net.Listen("unix", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	p := New(secret, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, "publish"))
	}, slog.New(slog.DiscardHandler))
	served := make(chan struct{})
	go func() {
		p.Serve(h.portal, func() { h.used.Add(1) })
		close(served)
	}()
	go h.serve(secret)
	t.Cleanup(func() {
		h.publish.Close()
		h.portal.Close()
		<-served
	})
	return h, p
}

func (h *host) serve(secret []byte) {
	for {
		conn, err := h.publish.Accept()
		if err != nil {
			return
		}
		got := make([]byte, len(secret))
		io.ReadFull(conn, got)
		var req wire.PublishRequest
		wire.ReadFrame(conn, &req)
		reply := wire.PublishReply{Address: strings.Replace(req.Address, ":0", ":4321", 1)}
		if !bytes.Equal(got, secret) {
			reply.Error = "wrong secret"
		}
		if strings.HasSuffix(req.Address, ":80") {
			reply.Error = "port is already allocated"
		}
		wire.WriteFrame(conn, reply)
		select {
		case h.asked <- conn:
			h.networks <- req.Network
		default:
		}
		go func() {
			io.Copy(io.Discard, conn)
			h.closed <- struct{}{}
		}()
	}
}

func (h *host) open(t *testing.T, id uint64) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", h.portal.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := wire.WriteFrame(conn, wire.PortalRequest{ID: id, Peer: "192.0.2.1:1"}); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

var secret = bytes.Repeat([]byte{7}, wire.SecretSize)

func TestTCP(t *testing.T) {
	h, p := newHost(t, secret)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // answers only when the client has finished
				all, _ := io.ReadAll(conn)
				conn.Write(append([]byte("got "), all...))
				conn.Close()
			}()
		}
	}()
	port, err := p.Open(t.Context(), "tcp", "0.0.0.0:0", to(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	if got := port.Addr().String(); got != "0.0.0.0:4321" {
		t.Errorf("the host listens at %s", got)
	}
	conn := h.open(t, port.id)
	io.WriteString(conn, "words")
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != "got words" {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()

	port.Close()
	<-h.closed
	late := h.open(t, port.id)
	if got, _ := io.ReadAll(late); len(got) > 0 {
		t.Errorf("a port that is closed answered %q", got)
	}
	if n := h.used.Load(); n < 3 { // the first may not have ended yet
		t.Errorf("two connections were told of as %d uses", n)
	}
}

func TestUDP(t *testing.T) {
	h, p := newHost(t, secret)
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		buf := make([]byte, wire.MaxDatagram)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			l.WriteTo(bytes.ToUpper(buf[:n]), from)
		}
	}()
	port, err := p.Open(t.Context(), "udp", "127.0.0.1:5353", to(l.LocalAddr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	conn := h.open(t, port.id)
	defer conn.Close()
	buf := make([]byte, wire.MaxDatagram)
	for _, msg := range []string{"a", "bb", strings.Repeat("c", 9000)} {
		if err := wire.WriteDatagram(conn, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		n, err := wire.ReadDatagram(conn, buf)
		if err != nil || string(buf[:n]) != strings.ToUpper(msg) {
			t.Fatalf("got %d bytes, %v", n, err)
		}
	}
}

// TestTarget tells the host where a port leads, and again when that has changed.
func TestTarget(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	p := New(secret, func(context.Context) (net.Conn, error) { return near, nil }, slog.New(slog.DiscardHandler))
	leads := netip.MustParseAddrPort("172.17.0.2:80")
	got := make(chan string, 4)
	go func() {
		io.ReadFull(far, make([]byte, len(secret)))
		var req wire.PublishRequest
		wire.ReadFrame(far, &req)
		got <- req.Target
		wire.WriteFrame(far, wire.PublishReply{Address: "127.0.0.1:1234"})
		for {
			var to wire.PublishTarget
			if wire.ReadFrame(far, &to) != nil {
				return
			}
			got <- to.Target
		}
	}()
	port, err := p.Open(t.Context(), "tcp", "127.0.0.1:0", func() netip.AddrPort { return leads })
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	for _, to := range []string{"172.18.0.9:80", "[fd00::2]:80"} {
		leads = netip.MustParseAddrPort(to)
		port.Moved()
	}
	leads = netip.AddrPort{} // on no network
	port.Moved()
	for _, want := range []string{"172.17.0.2:80", "172.18.0.9:80", "", ""} {
		if to := <-got; to != want {
			t.Errorf("the host was told %q, want %q", to, want)
		}
	}
}

// TestIPv6Only: of an address of the host's only; the container is dialled as ever.
func TestIPv6Only(t *testing.T) {
	h, p := newHost(t, secret)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port, err := p.Open(t.Context(), "tcp6", "[::]:0", to(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if got := <-h.networks; got != "tcp6" {
		t.Errorf("the host was asked for %q", got)
	}
	defer h.open(t, port.id).Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestRefusals(t *testing.T) {
	_, p := newHost(t, secret)
	target := to("127.0.0.1:1")
	if _, err := p.Open(t.Context(), "tcp", "0.0.0.0:80", target); err == nil || !strings.Contains(err.Error(), "already allocated") {
		t.Errorf("a taken port: %v", err)
	}
	if _, err := p.Open(t.Context(), "sctp", "0.0.0.0:0", target); err == nil {
		t.Error("sctp was published")
	}
	if n := len(p.ports); n != 0 {
		t.Errorf("%d ports left", n)
	}
}

func TestSilentHost(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go io.Copy(io.Discard, b)
	p := New(secret, func(context.Context) (net.Conn, error) { return a, nil }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Open(ctx, "tcp", ":0", to("127.0.0.1:1")); err == nil {
		t.Error("a host that says nothing was believed")
	}
}

// to is what a port leads to, always.
func to(address string) func() netip.AddrPort {
	return func() netip.AddrPort { return netip.MustParseAddrPort(address) }
}

// TestAnotherHost has the host's streams break, as they do for a machine that was
// saved: the next host is asked to listen where the last did.
func TestAnotherHost(t *testing.T) {
	h, p := newHost(t, secret)
	port, err := p.Open(t.Context(), "tcp", "127.0.0.1:0", to("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		(<-h.asked).Close()
		<-h.closed
	}
	last := <-h.asked
	if got := port.Addr().String(); got != "127.0.0.1:4321" {
		t.Errorf("the host listens at %s", got)
	}
	if err := port.Close(); err != nil {
		t.Error(err)
	}
	<-h.closed // by Close, not by the test
	last.Close()
	time.Sleep(2 * askAgain)
	if len(h.asked) > 0 {
		t.Error("a closed port was asked for again")
	}
}
