package usernet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

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

	"github.com/berthvm/berth/vm"
)

var _ vm.OffloadNetwork = (*Network)(nil)

// container is behind the guest, which routes.
var container = netip.MustParseAddr("172.17.0.2")

// offloadGuest is a machine whose network device takes offloads. It answers for a
// container too.
type offloadGuest struct {
	stack   *stack.Stack
	unplug  func()
	longest atomic.Int64 // segment that the network has left to cut
}

func newOffloadGuest(t *testing.T, n *Network) *offloadGuest {
	t.Helper()
	mac, _ := net.ParseMAC(GuestMAC)
	ch := channel.New(512, 1500, tcpip.LinkAddress(mac))
	ch.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	g := &offloadGuest{stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})}
	if err := g.stack.CreateNIC(1, ethernet.New(ch)); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{Guest, container} {
		g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(a.As4()).WithPrefix()}, stack.AddressProperties{})
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	receive, unplug, err := n.Plug(func(off vm.Offload, frame [][]byte) {
		b := slices.Concat(frame...)
		if off.Segment != 0 {
			g.longest.Store(max(g.longest.Load(), int64(len(b))))
		}
		if (off.Segment != 0) != (len(b)-int(off.Header) > int(off.Segment) && off.Checksum && off.Segment != 0) {
			t.Errorf("a frame of %d bytes with %+v", len(b), off)
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		ch.InjectInbound(0, pkt)
		pkt.DecRef()
	})
	if err != nil {
		t.Fatal(err)
	}
	g.unplug = unplug
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pkt := ch.ReadContext(ctx); pkt != nil; pkt = ch.ReadContext(ctx) {
			receive(slices.Concat(pkt.AsSlices()...))
			pkt.DecRef()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		g.stack.Destroy()
	})
	return g
}

func TestDialGuest(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	n, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	to := netip.AddrPortFrom(container, 80)
	if _, err := n.DialGuest(t.Context(), to); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without a device: %v", err)
	}
	g := newOffloadGuest(t, n)
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(container.As4()), Port: 80}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // answers only when the client has finished
				all, _ := io.ReadAll(c)
				c.Write(all)
				c.Close()
			}()
		}
	}()
	c, err := n.DialGuest(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		c.Write(sent)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(c); !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes of %d: %v", len(got), len(sent), err)
	}
	if n := g.longest.Load(); n < 10<<10 || n > maxSegment+header.EthernetMinimumSize {
		t.Errorf("the longest segment has %d bytes", n)
	}
	if _, err := n.DialGuest(t.Context(), netip.AddrPortFrom(container, 81)); err == nil {
		t.Error("a port where nobody listens took a connection")
	}
	if _, err := n.DialGuest(t.Context(), netip.MustParseAddrPort("[fd00::2]:80")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("by IPv6: %v", err)
	}
	if _, _, err := n.Plug(nil); !errors.Is(err, errBusy) {
		t.Errorf("a second device: %v", err)
	}
	g.unplug()
	if _, err := n.DialGuest(t.Context(), to); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("after the device is gone: %v", err)
	}
}

// TestContainersAreHeard: packets of containers' own addresses count only as parts of
// connections that the host makes.
func TestContainersAreHeard(t *testing.T) {
	n, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	packet := func(from, to netip.Addr, protocol uint8) []byte {
		p := make([]byte, 40)
		header.IPv4(p).Encode(&header.IPv4Fields{TotalLength: 40, TTL: 9, Protocol: protocol, SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4())})
		return p
	}
	for _, c := range []struct {
		from, to netip.Addr
		protocol uint8
		want     bool
	}{
		{Guest, Host, 6, true}, {container, Gateway, 6, true}, {container, Gateway, 17, false}, {container, Host, 6, false},
		{container, netip.MustParseAddr("192.0.2.1"), 6, false},
	} {
		if got := n.cable.acceptIPv4(packet(c.from, c.to, c.protocol)); got != c.want {
			t.Errorf("protocol %d from %s to %s: %v", c.protocol, c.from, c.to, got)
		}
	}
}
