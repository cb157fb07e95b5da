package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// guest plays the machine's side: it asks for ports and answers their
// connections.
type guest struct {
	publish net.Listener // where the host accepts
	portal  net.Listener // where the guest accepts
	ports   *Ports
	direct  Direct
}

func newGuest(t *testing.T, secret []byte) *guest {
	t.Helper()
	return newGuestWith(t, secret, nil)
}

func newGuestWith(t *testing.T, secret []byte, direct Direct) *guest {
	t.Helper()
	g := &guest{publish: tcpListener(t), portal: tcpListener(t), ports: &Ports{}, direct: direct}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.ports.Serve(ctx, g.publish, func() []byte { return secret }, func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", g.portal.Addr().String())
		}, g.direct)
	}()
	t.Cleanup(func() {
		cancel()
		g.portal.Close()
		<-done
	})
	return g
}

// ask opens a publish stream and returns it with the host's reply.
func (g *guest) ask(t *testing.T, secret []byte, req wire.PublishRequest) (net.Conn, wire.PublishReply, error) {
	t.Helper()
	c, err := net.Dial("tcp", g.publish.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(secret)
	wire.WriteFrame(c, req)
	var reply wire.PublishReply
	err = wire.ReadFrame(c, &reply)
	return c, reply, err
}

func TestPublishTCP(t *testing.T) {
	secret := bytes.Repeat([]byte{3}, wire.SecretSize)
	g := newGuest(t, secret)
	stream, reply, err := g.ask(t, secret, wire.PublishRequest{ID: 7, Network: "tcp", Address: "127.0.0.1:0"})
	if err != nil || reply.Error != "" {
		t.Fatalf("%+v, %v", reply, err)
	}
	if got := g.ports.List(); len(got) != 1 || got[0] != "tcp "+reply.Address {
		t.Errorf("published: %v", got)
	}
	client, err := net.Dial("tcp", reply.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	inside, err := g.portal.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	var req wire.PortalRequest
	if err := wire.ReadFrame(inside, &req); err != nil || req.ID != 7 || req.Peer != client.LocalAddr().String() {
		t.Errorf("portal request %+v, %v", req, err)
	}
	io.WriteString(client, "ping")
	client.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(inside); string(got) != "ping" {
		t.Errorf("inside: %q, %v", got, err)
	}
	io.WriteString(inside, "pong")
	inside.Close()
	if got, err := io.ReadAll(client); string(got) != "pong" {
		t.Errorf("outside: %q, %v", got, err)
	}

	if _, again, _ := g.ask(t, secret, wire.PublishRequest{ID: 8, Network: "tcp", Address: reply.Address}); !strings.Contains(again.Error, "port is already allocated") {
		t.Errorf("a taken port: %+v", again)
	}
	stream.Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		l, err := net.Listen("tcp", reply.Address)
		if err == nil {
			l.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the listener outlived its stream")
		}
	}
}

func TestPublishUDP(t *testing.T) {
	secret := bytes.Repeat([]byte{4}, wire.SecretSize)
	g := newGuest(t, secret)
	_, reply, err := g.ask(t, secret, wire.PublishRequest{ID: 1, Network: "udp", Address: "127.0.0.1:0"})
	if err != nil || reply.Error != "" {
		t.Fatalf("%+v, %v", reply, err)
	}
	go func() {
		for {
			c, err := g.portal.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var req wire.PortalRequest
				wire.ReadFrame(c, &req)
				buf := make([]byte, wire.MaxDatagram)
				for {
					n, err := wire.ReadDatagram(c, buf)
					if err != nil {
						return
					}
					wire.WriteDatagram(c, append([]byte(req.Peer+" "), buf[:n]...))
				}
			}()
		}
	}()
	for range 2 {
		c, err := net.Dial("udp", reply.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 100)
		for _, msg := range []string{"a", "b"} {
			io.WriteString(c, msg)
			n, err := c.Read(buf)
			if want := c.LocalAddr().String() + " " + msg; err != nil || string(buf[:n]) != want {
				t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
			}
		}
	}
}

// TestPublishDirect: where there is a way to the container itself it is taken, to the
// target that the guest has named last, and the guest learns that ports are in use.
func TestPublishDirect(t *testing.T) {
	secret := bytes.Repeat([]byte{6}, wire.SecretSize)
	asked := make(chan string, 10)
	inside := make(chan net.Conn, 10)
	g := newGuestWith(t, secret, func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
		asked <- to.String()
		switch to.Port() {
		case 1:
			return nil, fmt.Errorf("not this way: %w", errors.ErrUnsupported)
		case 2:
			return nil, errors.New("refused")
		}
		l := tcpListener(t)
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			far, _ := l.Accept()
			inside <- far
		}
		return c, err
	})
	stream, reply, err := g.ask(t, secret, wire.PublishRequest{ID: 7, Network: "tcp", Address: "127.0.0.1:0", PublishTarget: wire.PublishTarget{Target: "172.17.0.2:80"}})
	if err != nil || reply.Error != "" {
		t.Fatalf("%+v, %v", reply, err)
	}
	portal := func() (req wire.PortalRequest) {
		t.Helper()
		c, err := g.portal.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := wire.ReadFrame(c, &req); err != nil {
			t.Fatal(err)
		}
		return req
	}
	client := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", reply.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	c := client()
	if to := <-asked; to != "172.17.0.2:80" {
		t.Errorf("connected to %s", to)
	}
	if req := portal(); req.ID != 0 {
		t.Errorf("the guest learned of use by %+v", req)
	}
	far := <-inside
	io.WriteString(far, "pong")
	far.Close()
	if got, err := io.ReadAll(c); string(got) != "pong" {
		t.Errorf("outside: %q, %v", got, err)
	}
	move := func(to string) {
		t.Helper()
		if err := wire.WriteFrame(stream, wire.PublishTarget{Target: to}); err != nil {
			t.Fatal(err)
		}
	}
	// What was sent before is not seen at once: ask until it is.
	move("172.17.0.9:1")
	for to := ""; to != "172.17.0.9:1"; to = <-asked {
		c := client()
		defer c.Close()
	}
	if req := portal(); req.ID != 7 {
		t.Errorf("not directly, but by %+v", req)
	}
	move("172.17.0.9:2")
	for to := ""; to != "172.17.0.9:2"; to = <-asked {
		c = client()
	}
	if got, err := io.ReadAll(c); len(got) > 0 {
		t.Errorf("a connection that was refused: %q, %v", got, err)
	}
}

// TestPublishFamilies: who listens on "[::]" for IPv6 only leaves IPv4 to others.
func TestPublishFamilies(t *testing.T) {
	secret := bytes.Repeat([]byte{5}, wire.SecretSize)
	g := newGuest(t, secret)
	for _, network := range []string{"tcp", "udp"} {
		_, first, err := g.ask(t, secret, wire.PublishRequest{ID: 1, Network: network + "6", Address: "[::]:0"})
		if err != nil || first.Error != "" {
			t.Fatalf("%+v, %v", first, err)
		}
		at := netip.MustParseAddrPort(first.Address)
		if !at.Addr().Is6() {
			t.Errorf("%s6 listens on %v", network, at)
		}
		other := netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()).String()
		if _, second, err := g.ask(t, secret, wire.PublishRequest{ID: 2, Network: network, Address: other}); err != nil || second.Address != other {
			t.Errorf("%s on %s beside it: %+v, %v", network, other, second, err)
		}
		if _, both, err := g.ask(t, secret, wire.PublishRequest{ID: 3, Network: network, Address: "[::]:0"}); err != nil || both.Error != "" {
			t.Errorf("%+v, %v", both, err)
		} else if _, taken, _ := g.ask(t, secret, wire.PublishRequest{ID: 4, Network: network,
			Address: netip.AddrPortFrom(netip.IPv4Unspecified(), netip.MustParseAddrPort(both.Address).Port()).String()}); !strings.Contains(taken.Error, "already allocated") {
			t.Errorf("%s on both leaves IPv4: %+v", network, taken)
		}
	}
}

func TestPublishRefusals(t *testing.T) {
	secret := bytes.Repeat([]byte{5}, wire.SecretSize)
	g := newGuest(t, secret)
	for _, req := range []wire.PublishRequest{
		{Network: "tcp", Address: "example.org:80"},
		{Network: "tcp", Address: "127.0.0.1"},
		{Network: "tcp", Address: "127.0.0.1:99999"},
		{Network: "tcp", Address: "[fe80::1%lo]:0"},
		{Network: "tcp", Address: "192.0.2.1:0"},
		{Network: "tcp6", Address: "127.0.0.1:0"},
		{Network: "sctp", Address: "127.0.0.1:0"},
		{Network: "unix", Address: "/run/x"},
	} {
		if _, reply, err := g.ask(t, secret, req); err != nil || reply.Error == "" || reply.Address != "" {
			t.Errorf("%+v: %+v, %v", req, reply, err)
		}
	}
	if _, reply, err := g.ask(t, make([]byte, wire.SecretSize), wire.PublishRequest{Network: "tcp", Address: "127.0.0.1:0"}); err == nil {
		t.Errorf("without the secret: %+v", reply)
	}
}

func FuzzPublishAddr(f *testing.F) {
	f.Add("0.0.0.0:80")
	f.Add("[::1%eth0]:1")
	f.Fuzz(func(t *testing.T, s string) {
		if at, err := publishAddr(s); err == nil && (!at.IsValid() || at.Addr().Zone() != "") {
			t.Errorf("%q became %v", s, at)
		}
	})
}
