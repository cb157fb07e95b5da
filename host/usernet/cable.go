package usernet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/berthvm/berth/vm"
)

const (
	maxMTU = 65521 // what fits a 16-bit IPv4 length behind QEMU's frame buffer

	// maxFrame is the longest frame that is read, whatever the MTU: the longest
	// IPv4 packet and an Ethernet header with a tag.
	maxFrame = 65535 + 18
)

var (
	errBusy   = errors.New("the machine's network cable is in use")
	errLength = errors.New("the machine's network device sent an impossible frame length")
)

// card takes what arrives for the gateway.
type card interface {
	DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer)
	LinkAddress() tcpip.LinkAddress
}

// cable carries frames between the stack's network card and the guest's device.
type cable struct {
	guestMAC           tcpip.LinkAddress
	guestIP, gatewayIP tcpip.Address
	mtu                int
	card               card

	mu     sync.Mutex                 // one frame at a time is sent
	conn   net.Conn                   // nil unless it is plugged in
	send   func(vm.Offload, [][]byte) // likewise: a device that takes work over
	stream bool
	buf    []byte
}

func newCable(mac net.HardwareAddr, ip netip.Addr, mtu int, c card) *cable {
	return &cable{guestMAC: tcpip.LinkAddress(mac), guestIP: tcpip.AddrFrom4(ip.As4()), gatewayIP: tcpip.AddrFrom4(Gateway.As4()), mtu: mtu, card: c}
}

func (c *cable) plug(conn net.Conn, stream bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil || c.send != nil {
		return errBusy
	}
	c.conn, c.stream = conn, stream
	return nil
}

func (c *cable) unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.send = nil, nil
}

// plugDevice plugs in a device of this process.
func (c *cable) plugDevice(send func(vm.Offload, [][]byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil || c.send != nil {
		return errBusy
	}
	c.send = send
	return nil
}

// offloads reports whether what is plugged in cuts segments and makes checksums.
func (c *cable) offloads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.send != nil
}

// serveStream reads frames, each behind its length, until conn fails.
func (c *cable) serveStream(conn net.Conn) error {
	if err := c.plug(conn, true); err != nil {
		return err
	}
	defer func() { conn.Close(); c.unplug() }()
	r := bufio.NewReaderSize(conn, 128<<10)
	var frame [maxFrame]byte
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("cannot read from the machine's network device: %w", err)
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > maxFrame {
			return fmt.Errorf("%w: %d bytes", errLength, size)
		}
		if _, err := io.ReadFull(r, frame[:size]); err != nil {
			return fmt.Errorf("cannot read from the machine's network device: %w", err)
		}
		c.receive(frame[:size])
	}
}

// serveDatagram reads frames, one each datagram, until conn fails.
func (c *cable) serveDatagram(conn net.Conn) error {
	if err := c.plug(conn, false); err != nil {
		return err
	}
	defer func() { conn.Close(); c.unplug() }()
	var frame [maxFrame]byte
	for {
		n, err := conn.Read(frame[:])
		if err != nil {
			return fmt.Errorf("cannot read from the machine's network device: %w", err)
		}
		c.receive(frame[:n])
	}
}

// receive takes one frame of the guest's: the one place where it is checked
// before the stack sees it. The frame is copied.
func (c *cable) receive(frame []byte) {
	proto, ok := c.accept(frame)
	if !ok {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[header.EthernetMinimumSize:])})
	c.card.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// accept reports whether a frame is one that an honest guest sends to the
// gateway or to all: ARP, or IPv4.
func (c *cable) accept(frame []byte) (tcpip.NetworkProtocolNumber, bool) {
	if len(frame) < header.EthernetMinimumSize {
		return 0, false
	}
	eth := header.Ethernet(frame)
	if eth.SourceAddress() != c.guestMAC {
		return 0, false
	}
	if to := eth.DestinationAddress(); to != c.card.LinkAddress() && to != header.EthernetBroadcastAddress {
		return 0, false
	}
	payload := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		return header.ARPProtocolNumber, header.ARP(payload).IsValid()
	case header.IPv4ProtocolNumber:
		return header.IPv4ProtocolNumber, c.acceptIPv4(payload)
	}
	return 0, false
}

// acceptIPv4 reports whether a packet is from the guest's own address or, as a part
// of a connection that the host has made, from a container.
func (c *cable) acceptIPv4(packet []byte) bool {
	if len(packet) < header.IPv4MinimumSize {
		return false
	}
	ip := header.IPv4(packet)
	return ip.SourceAddress() == c.guestIP || ip.DestinationAddress() == c.gatewayIP && ip.TransportProtocol() == tcp.ProtocolNumber
}

// DeliverNetworkPacket sends a frame of the stack's to the guest. It blocks while
// the guest's device takes none, and drops it when nothing is plugged in.
func (c *cable) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.send != nil {
		c.send(offload(pkt), pkt.AsSlices())
		return
	}
	if c.conn == nil {
		return
	}
	b := c.buf[:0]
	if c.stream {
		b = binary.BigEndian.AppendUint32(b, uint32(pkt.Size()))
	}
	for _, s := range pkt.AsSlices() {
		b = append(b, s...)
	}
	c.buf = b
	if _, err := c.conn.Write(b); err != nil {
		if isFull(err) {
			return // a datagram socket without room: the packet is lost, as on a wire
		}
		c.conn.Close() // the reader ends, and says why
	}
}

// offload is what the stack has left to do in a packet. It leaves something only in
// TCP's, whose route had offloads when the connection was made.
func offload(pkt *stack.PacketBuffer) vm.Offload {
	o := pkt.GSOOptions
	if o.Type != stack.GSOTCPv4 {
		return vm.Offload{}
	}
	off := vm.Offload{Header: uint16(pkt.HeaderSize())}
	if o.NeedsCsum {
		off.Checksum, off.ChecksumStart, off.ChecksumOffset = true, header.EthernetMinimumSize+o.L3HdrLen, o.CsumOffset
	}
	if pkt.Data().Size() > int(o.MSS) {
		off.Segment = o.MSS
	}
	return off
}

// maxSegment is the longest segment that is left to a device to cut, in bytes with
// its headers: IPv4 has 16 bits for the length.
const maxSegment = 60 << 10

// networkCard is gvisor-tap-vsock's, with the offloads of what is plugged in.
type networkCard struct {
	*tap.LinkEndpoint
	cable *cable
}

// GSOMaxSize implements stack.GSOEndpoint.
func (networkCard) GSOMaxSize() uint32 { return maxSegment }

// SupportedGSO implements stack.GSOEndpoint.
func (c networkCard) SupportedGSO() stack.SupportedGSO {
	if c.cable.offloads() {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}
