// Package usernet is the far end of a machine's Ethernet cable: a router in user
// space that needs no rights. It gives the guest, at 192.168.127.2, the host's
// own way out: TCP and UDP connections of the guest become sockets of this
// process, so that they follow the host's routes, VPN and firewall. It opens no
// listening socket on the host.
//
//	192.168.127.1    the gateway; answers DNS
//	192.168.127.2    the guest, always: there is no DHCP
//	192.168.127.254  the host's loopback (host.docker.internal)
//
// IPv4 only. A ping is answered by the gateway for every address.
//
// The TCP/IP stack is gvisor's, its network card gvisor-tap-vsock's. The switch,
// forwarders and DNS of the latter are not used: they trust the guest with the
// length of frames, with any number of MAC addresses and flows, and with the
// host's loopback by its own address.
//
// # The guest is hostile
//
// Frames that are malformed, too long or not from the guest's own addresses are
// dropped (cable.go). Connections, flows, dials under way and DNS queries are
// capped; what is over the cap is refused (TCP), dropped (UDP) or fails (DNS).
// The host's loopback is reached by 192.168.127.254 only; link-local addresses
// (cloud metadata), multicast and this network's other addresses not at all.
package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/vm"
)

// The network's addresses.
var (
	Subnet  = netip.MustParsePrefix("192.168.127.0/24")
	Gateway = netip.MustParseAddr("192.168.127.1")
	Guest   = netip.MustParseAddr("192.168.127.2")
	Host    = netip.MustParseAddr("192.168.127.254")
)

// GuestMAC is the hardware address that the guest's network device has.
const GuestMAC = "5a:94:ef:e4:0c:ee"

const gatewayMAC = "5a:94:ef:e4:0c:dd"

// Options configures a Network. The zero value works.
type Options struct {
	Log *slog.Logger
	MTU int // bytes; the guest's must not be larger. Default 1500

	// Servers returns the DNS servers to ask, in order. Default: the host's.
	Servers func() []netip.AddrPort
	// Dial makes the guest's outbound connections ("tcp", "udp"). Default: a
	// net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Network implements vm.Network for one machine. Its methods are safe for
// concurrent use.
type Network struct {
	opts  Options
	log   *slog.Logger
	mac   net.HardwareAddr
	stack *stack.Stack
	cable *cable

	ctx    context.Context // the Network's life: Close cancels it
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // Add from outside of it only by enter

	tcpFlows, udpFlows slots
}

// Bounds on what one guest can hold.
const (
	maxTCP   = 4096 // connections, those being dialled included
	maxUDP   = 2048 // flows
	maxDials = 512  // connections being dialled
)

const nic = tcpip.NICID(1)

// New makes a network that nothing is connected to.
func New(opts Options) (*Network, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	if opts.MTU < 576 || opts.MTU > maxMTU {
		return nil, fmt.Errorf("MTU %d: a number from 576 to %d is expected", opts.MTU, maxMTU)
	}
	if opts.Servers == nil {
		opts.Servers = new(hostServers).get
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		return nil, err
	}
	n := &Network{opts: opts, log: opts.Log, mac: mac, tcpFlows: newSlots(maxTCP), udpFlows: newSlots(maxUDP)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.makeStack(); err != nil {
		n.Close()
		return nil, fmt.Errorf("cannot make the machine's network: %w", err)
	}
	return n, nil
}

func (n *Network) makeStack() error {
	card, err := tap.NewLinkEndpoint(false, uint32(n.opts.MTU), gatewayMAC, Gateway.String(), []string{Host.String()})
	if err != nil {
		return err
	}
	n.cable = newCable(n.mac, Guest, n.opts.MTU, card)
	card.Connect(n.cable)
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	// The wire is memory: nothing of an old connection is on it for longer.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(2 * time.Second)
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 4 << 20},
		&tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 1 << 20},
		&timeWait,
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	if err := n.stack.CreateNIC(nic, networkCard{card, n.cable}); err != nil {
		return errors.New(err.String())
	}
	gw := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(Gateway.As4()).WithPrefix()}
	if err := n.stack.AddProtocolAddress(nic, gw, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// Everything that the guest sends is for us, whatever its address.
	n.stack.SetPromiscuousMode(nic, true)
	n.stack.SetSpoofing(nic, true)
	subnet, err := tcpip.NewSubnet(tcpip.AddrFrom4(Subnet.Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(Subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: nic},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(Guest.As4()), NIC: nic}, // its containers, for DialGuest
	})
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, n.forwardTCP())
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, n.forwardUDP())
	return n.serveDNS()
}

// MAC implements vm.Network.
func (n *Network) MAC() net.HardwareAddr { return append(net.HardwareAddr(nil), n.mac...) }

// Guest is how the guest configures its end.
func (n *Network) Guest() wire.Network {
	return wire.Network{
		Address: netip.PrefixFrom(Guest, Subnet.Bits()).String(),
		Gateway: Gateway.String(),
		MTU:     n.opts.MTU,
		DNS:     []string{Gateway.String()},
		Host:    Host.String(),
	}
}

// ServeStream implements vm.Network: QEMU's stream protocol. A cable has two
// ends: a second connection at the same time is refused.
func (n *Network) ServeStream(ctx context.Context, conn net.Conn) error {
	return n.serve(ctx, conn, n.cable.serveStream)
}

// ServeDatagram implements vm.Network: the protocol of Apple's file handle
// device and of vfkit.
func (n *Network) ServeDatagram(ctx context.Context, conn net.Conn) error {
	return n.serve(ctx, conn, n.cable.serveDatagram)
}

// Plug implements vm.OffloadNetwork.
func (n *Network) Plug(send func(vm.Offload, [][]byte)) (receive func([]byte), unplug func(), err error) {
	if !n.enter() {
		return nil, nil, net.ErrClosed
	}
	defer n.wg.Done()
	if err := n.cable.plugDevice(send); err != nil {
		return nil, nil, err
	}
	return n.cable.receive, n.cable.unplug, nil
}

func (n *Network) serve(ctx context.Context, conn net.Conn, serve func(net.Conn) error) error {
	defer conn.Close()
	if !n.enter() {
		return net.ErrClosed
	}
	defer n.wg.Done()
	defer context.AfterFunc(n.ctx, func() { conn.Close() })()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := serve(conn)
	switch {
	case n.ctx.Err() != nil:
		return net.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// Close unplugs the cable, breaks all connections and waits for the goroutines
// of this package and of the stack. (The stack's endpoints may keep a timer for
// some seconds, which holds nothing but memory.)
func (n *Network) Close() error {
	n.mu.Lock()
	closed := n.closed
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
	if !closed && n.stack != nil {
		n.stack.Destroy()
	}
	return nil
}

// enter joins the calling goroutine to Close's wait; it reports false once the
// Network is closed.
func (n *Network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Add(1)
	return true
}

// allowed says where a connection of the guest's to addr leads on the host.
func allowed(addr netip.Addr) (netip.Addr, bool) {
	switch {
	case addr == Host:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), true
	case Subnet.Contains(addr), addr.IsLoopback(), addr.IsUnspecified(), addr.IsLinkLocalUnicast(), addr.IsMulticast(),
		addr.As4()[0] == 0, addr.As4()[0] >= 240:
		return addr, false
	}
	return addr, true
}

// slots counts what may exist at once.
type slots chan struct{}

func newSlots(n int) slots { return make(slots, n) }

// take reports whether there was a free slot, which then is the caller's.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) release() { <-s }
