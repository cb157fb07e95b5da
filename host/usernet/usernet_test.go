package usernet

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
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/berthvm/berth/vm"
)

var _ vm.Network = (*Network)(nil)

// guest is a machine with a TCP/IP stack at the other end of the cable.
type guest struct {
	t     *testing.T
	net   *Network
	stack *stack.Stack
	conn  net.Conn // the cable's guest end
	done  chan error

	patience time.Duration // of a dial
}

func newGuest(t *testing.T, opts Options) *guest {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	n, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	near, far := net.Pipe()
	g := &guest{t: t, net: n, conn: near, done: make(chan error, 1), patience: 5 * time.Second}
	go func() { g.done <- n.ServeStream(context.Background(), far) }()
	g.start()
	return g
}

func (g *guest) start() {
	mac, _ := net.ParseMAC(GuestMAC)
	// As deep as its stack may send at once: a queue that drops is no network card's, and
	// recovery without SACK takes longer than a test.
	ch := channel.New(8192, uint32(g.net.opts.MTU), tcpip.LinkAddress(mac))
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	g.stack = s
	if err := s.CreateNIC(1, ethernet.New(ch)); err != nil {
		g.t.Fatal(err)
	}
	s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(Guest.As4()), PrefixLen: 24}}, stack.AddressProperties{})
	sub, _ := tcpip.NewSubnet(tcpip.AddrFrom4(Subnet.Addr().As4()), tcpip.MaskFromBytes([]byte{255, 255, 255, 0}))
	s.SetRouteTable([]tcpip.Route{{Destination: sub, NIC: 1}, {Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(Gateway.As4()), NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { // out
		for {
			pkt := ch.ReadContext(ctx)
			if pkt == nil {
				return
			}
			var b []byte
			for _, p := range pkt.AsSlices() {
				b = append(b, p...)
			}
			pkt.DecRef()
			g.send(b)
		}
	})
	wg.Go(func() { // in
		for {
			var head [4]byte
			if _, err := io.ReadFull(g.conn, head[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(head[:]))
			if _, err := io.ReadFull(g.conn, b); err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
			ch.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	g.t.Cleanup(func() {
		cancel()
		g.conn.Close()
		wg.Wait()
		s.Destroy()
	})
}

func (g *guest) send(frame []byte) {
	g.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
}

func (g *guest) dial(network string, to netip.AddrPort) (net.Conn, error) {
	at := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}
	if network == "udp" {
		return gonet.DialUDP(g.stack, nil, &at, ipv4.ProtocolNumber)
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.patience)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, at, ipv4.ProtocolNumber)
}

// listen serves TCP on the host's loopback.
func listen(t *testing.T, network, at string, serve func(net.Conn)) uint16 {
	t.Helper()
	ln, err := net.Listen(network, at)
	if err != nil {
		t.Skip(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

func TestTCPBothWaysWithHalfClose(t *testing.T) {
	port := listen(t, "tcp4", "127.0.0.1:0", func(c net.Conn) {
		// Answers only when the guest has said all.
		b, _ := io.ReadAll(c)
		sum := sha256.Sum256(b)
		c.Write(sum[:])
		c.Write(b)
	})
	for _, mtu := range []int{1500, maxMTU} {
		g := newGuest(t, Options{MTU: mtu})
		c, err := g.dial("tcp", netip.AddrPortFrom(Host, port))
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 3<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		go func() {
			c.Write(data)
			c.(*gonet.TCPConn).CloseWrite()
		}()
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		got, err := io.ReadAll(c)
		sum := sha256.Sum256(data)
		if err != nil || len(got) != 32+len(data) || !bytes.Equal(got[:32], sum[:]) || !bytes.Equal(got[32:], data) {
			t.Errorf("MTU %d: %d bytes came back, %v", mtu, len(got), err)
		}
		c.Close()
	}
}

func TestRefusalsAreSeen(t *testing.T) {
	dead := listen(t, "tcp4", "127.0.0.1:0", func(net.Conn) {})
	g := newGuest(t, Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "127.0.0.1:") {
			return nil, errors.New("refused")
		}
		t.Errorf("dialled %s", address)
		return nil, errors.New("not allowed")
	}})
	g.patience = time.Second // for what leaves the guest's stack unanswered
	for _, to := range []string{"192.168.127.254", "192.168.127.1", "192.168.127.77", "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1"} {
		start := time.Now()
		c, err := g.dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), dead))
		if err == nil {
			c.Close()
			t.Errorf("connected to %s", to)
		}
		if took := time.Since(start); to == "192.168.127.254" && took > 900*time.Millisecond {
			t.Errorf("the refusal of %s took %s", to, took)
		}
	}
}

func TestHostLoopbackByIPv6(t *testing.T) {
	port := listen(t, "tcp6", "[::1]:0", func(c net.Conn) { io.WriteString(c, "six") })
	g := newGuest(t, Options{})
	c, err := g.dial("tcp", netip.AddrPortFrom(Host, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "six" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestUDP(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
	g := newGuest(t, Options{})
	c, err := g.dial("udp", netip.AddrPortFrom(Host, uint16(pc.LocalAddr().(*net.UDPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, 1400, 9000} { // the last in fragments
		want := bytes.Repeat([]byte{byte(size)}, size)
		c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<16)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("%d bytes: %d came back, %v", size, n, err)
		}
	}
}

// listenBoth listens by UDP and TCP on one port.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp4", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		pc.Close() // somebody has the port by TCP
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// dnsServer answers on the host's loopback by a handler.
func dnsServer(t *testing.T, h dns.HandlerFunc) netip.AddrPort {
	pc, ln := listenBoth(t)
	at := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return at
}

func (g *guest) ask(network, name string, qtype uint16, edit func(*dns.Msg)) (*dns.Msg, error) {
	c, err := g.dial(network, netip.AddrPortFrom(Gateway, 53))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	q := new(dns.Msg).SetQuestion(name, qtype)
	if edit != nil {
		edit(q)
	}
	co := &dns.Conn{Conn: c, UDPSize: 65535}
	if err := co.WriteMsg(q); err != nil {
		return nil, err
	}
	// dns.Conn tells UDP from TCP by net.PacketConn, which gonet's both are not.
	if network == "udp" {
		b := make([]byte, 65535)
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		r := new(dns.Msg)
		return r, r.Unpack(b[:n])
	}
	return co.ReadMsg()
}

func TestDNS(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	good := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		mu.Lock()
		asked[w.LocalAddr().Network()+" "+name]++
		mu.Unlock()
		r := new(dns.Msg).SetReply(q)
		hdr := dns.RR_Header{Name: name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 5}
		switch name {
		case "big.test.":
			if w.LocalAddr().Network() == "udp" {
				r.Truncated = true
				break
			}
			for i := range 200 {
				r.Answer = append(r.Answer, &dns.TXT{Hdr: hdr, Txt: []string{strings.Repeat("x", 100) + fmt.Sprint(i)}})
			}
		case "missing.test.":
			r.Rcode = dns.RcodeNameError
		case "odd.test.":
			hdr.Rrtype = 65280
			r.Answer = []dns.RR{&dns.RFC3597{Hdr: hdr, Rdata: "abcd"}}
		case "edns.test.":
			if o := q.IsEdns0(); o != nil {
				r.SetEdns0(o.UDPSize(), true)
			}
		default:
			r.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IPv4(9, 9, 9, 9)}}
		}
		w.WriteMsg(r)
	})
	bad := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	servers := []netip.AddrPort{bad, good}
	g := newGuest(t, Options{Servers: func() []netip.AddrPort { return servers }})
	check := func(network, name string, qtype uint16, edit func(*dns.Msg), ok func(*dns.Msg) bool) {
		t.Helper()
		r, err := g.ask(network, name, qtype, edit)
		if err != nil || !ok(r) {
			t.Errorf("%s %s %s: %v, %v", network, name, dns.TypeToString[qtype], r, err)
		}
	}
	answers := func(want string) func(*dns.Msg) bool {
		return func(r *dns.Msg) bool { return len(r.Answer) == 1 && strings.HasSuffix(r.Answer[0].String(), want) }
	}
	for _, network := range []string{"udp", "tcp"} {
		check(network, "plain.test.", dns.TypeA, nil, answers("\t9.9.9.9"))
		check(network, "missing.test.", dns.TypeAAAA, nil, func(r *dns.Msg) bool { return r.Rcode == dns.RcodeNameError })
		check(network, "odd.test.", 65280, nil, func(r *dns.Msg) bool { return len(r.Answer) == 1 })
		check(network, "edns.test.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, true) }, func(r *dns.Msg) bool {
			o := r.IsEdns0()
			return o != nil && o.UDPSize() == 1232 && o.Do()
		})
		for _, name := range []string{"host.docker.internal.", "Gateway.Docker.Internal."} {
			check(network, name, dns.TypeA, nil, answers("\t192.168.127.254"))
			check(network, name, dns.TypeAAAA, nil, func(r *dns.Msg) bool { return r.Rcode == 0 && len(r.Answer) == 0 })
		}
		for _, name := range []string{"localhost.", "Git.localhost."} {
			check(network, name, dns.TypeA, nil, answers("\t127.0.0.1"))
			check(network, name, dns.TypeAAAA, nil, answers("\t::1"))
			check(network, name, dns.TypeTXT, nil, func(r *dns.Msg) bool { return r.Rcode == 0 && len(r.Answer) == 0 })
		}
		check(network, "localhost.test.", dns.TypeA, nil, answers("\t9.9.9.9"))
		check(network, "other.docker.internal.", dns.TypeA, nil, answers("\t9.9.9.9"))
	}
	check("udp", "big.test.", dns.TypeTXT, nil, func(r *dns.Msg) bool { return r.Truncated })
	check("tcp", "big.test.", dns.TypeTXT, nil, func(r *dns.Msg) bool { return len(r.Answer) == 200 })
	mu.Lock()
	if asked["udp host.docker.internal."]+asked["tcp host.docker.internal."] > 0 || asked["udp plain.test."] != 1 || asked["tcp plain.test."] != 1 {
		t.Errorf("the host's server was asked: %v", asked)
	}
	mu.Unlock()
	servers = nil
	check("udp", "plain.test.", dns.TypeA, nil, func(r *dns.Msg) bool {
		return r.Rcode == dns.RcodeServerFailure && len(r.Question) == 1
	})
}

func TestHostileFrames(t *testing.T) {
	g := newGuest(t, Options{Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("a spoofed packet made a connection")
		return nil, errors.New("no")
	}})
	c := g.net.cable
	mac, other := []byte(c.guestMAC), []byte{2, 0, 0, 0, 0, 1}
	gw := []byte(c.card.LinkAddress())
	ip := make([]byte, 40)
	header.IPv4(ip).Encode(&header.IPv4Fields{TotalLength: 40, TTL: 9, Protocol: 6, SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2})})
	header.IPv4(ip).SetChecksum(^header.IPv4(ip).CalculateChecksum())
	frame := func(dst, src []byte, typ uint16, payload []byte) []byte {
		b := append(append([]byte{}, dst...), src...)
		return append(binary.BigEndian.AppendUint16(b, typ), payload...)
	}
	for i, f := range [][]byte{
		nil, {1}, make([]byte, 13), make([]byte, 14),
		frame(gw, mac, 0x800, nil),
		frame(gw, mac, 0x800, make([]byte, 19)),
		frame(gw, mac, 0x806, make([]byte, 5)),
		frame(gw, other, 0x800, ip),
		frame(gw, mac, 0x800, ip), // another's address
		frame(other, mac, 0x800, ip),
		frame(gw, mac, 0x86dd, make([]byte, 60)),
		frame(gw, mac, 0x8100, ip),
	} {
		if _, ok := c.accept(f); ok {
			t.Errorf("frame %d was accepted", i)
		}
		g.send(f)
	}
	// The cable still works.
	if r, err := g.ask("udp", "host.docker.internal.", dns.TypeA, nil); err != nil || len(r.Answer) != 1 {
		t.Errorf("after the frames: %v, %v", r, err)
	}
	// A length that cannot be breaks it.
	g.conn.Write([]byte{0xff, 0xff, 0xff, 0xff})
	if err := <-g.done; !errors.Is(err, errLength) {
		t.Errorf("an impossible length: %v", err)
	}
}

func TestOneCableAtATime(t *testing.T) {
	g := newGuest(t, Options{})
	if _, err := g.ask("udp", "host.docker.internal.", dns.TypeA, nil); err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	if err := g.net.ServeStream(context.Background(), b); !errors.Is(err, errBusy) {
		t.Errorf("a second cable: %v", err)
	}
	// After the first is unplugged there is room, and ctx ends serving.
	g.conn.Close()
	<-g.done
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	c, d := net.Pipe()
	defer c.Close()
	if err := g.net.ServeStream(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	g.net.Close()
	if err := g.net.ServeStream(context.Background(), d); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestCloseBreaksConnections(t *testing.T) {
	started := make(chan struct{}, 1)
	port := listen(t, "tcp4", "127.0.0.1:0", func(c net.Conn) {
		started <- struct{}{}
		io.Copy(io.Discard, c)
	})
	g := newGuest(t, Options{})
	c, err := g.dial("tcp", netip.AddrPortFrom(Host, port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-started
	done := make(chan struct{})
	go func() { g.net.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Close hangs")
	}
}

func TestOptions(t *testing.T) {
	for _, mtu := range []int{-1, 100, maxMTU + 1} {
		if n, err := New(Options{MTU: mtu}); err == nil {
			n.Close()
			t.Errorf("MTU %d was accepted", mtu)
		}
	}
}

func TestServerFailureKeepsTheQuestion(t *testing.T) {
	q := new(dns.Msg).SetQuestion("a.b.", dns.TypeMX)
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(serverFailure(b)); err != nil || r.Id != q.Id || r.Rcode != dns.RcodeServerFailure || len(r.Question) != 1 || r.Question[0] != q.Question[0] {
		t.Errorf("%v, %v", r, err)
	}
}

func FuzzCable(f *testing.F) {
	mac, _ := net.ParseMAC(GuestMAC)
	gw, _ := net.ParseMAC(gatewayMAC)
	f.Add(append(append(append([]byte{}, gw...), mac...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1))
	f.Add(append(append(append([]byte{}, gw...), mac...), 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 9, 17, 0, 0, 192, 168, 127, 2, 192, 168, 127, 1, 0, 9, 0, 53, 0, 20, 0, 0))
	n, err := New(Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > maxFrame {
			return
		}
		n.cable.receive(frame)
		// Again with the fields that are checked as they should be.
		if len(frame) >= 34 {
			copy(frame, gw)
			copy(frame[6:], mac)
			copy(frame[12:], []byte{8, 0})
			copy(frame[26:], []byte{192, 168, 127, 2})
			n.cable.receive(frame)
		}
	})
}

func FuzzDNSQuery(f *testing.F) {
	for _, name := range []string{"host.docker.internal.", "x.localhost.", "a.", "."} {
		b, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isQuery(b) {
			return
		}
		hostAnswer(b)
		if r := serverFailure(b); len(r) < 12 || r[0] != b[0] || r[1] != b[1] || r[2]&0x80 == 0 || len(r) > len(b) {
			t.Errorf("%x for %x", r, b)
		}
	})
}
