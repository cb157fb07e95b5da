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

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
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
	guestMAC tcpip.LinkAddress
	guestIP  tcpip.Address
	mtu      int
	card     card

	mu     sync.Mutex // one frame at a time is sent
	conn   net.Conn   // nil while nothing is plugged in
	stream bool
	buf    []byte
}

func newCable(mac net.HardwareAddr, ip netip.Addr, mtu int, c card) *cable {
	return &cable{guestMAC: tcpip.LinkAddress(mac), guestIP: tcpip.AddrFrom4(ip.As4()), mtu: mtu, card: c}
}

func (c *cable) plug(conn net.Conn, stream bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		return errBusy
	}
	c.conn, c.stream = conn, stream
	return nil
}

func (c *cable) unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = nil
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
// gateway or to all: ARP, or IPv4 from the guest's own address.
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
		if len(payload) < header.IPv4MinimumSize || header.IPv4(payload).SourceAddress() != c.guestIP {
			return 0, false
		}
		return header.IPv4ProtocolNumber, true
	}
	return 0, false
}

// DeliverNetworkPacket sends a frame of the stack's to the guest. It blocks while
// the guest's device takes none, and drops it when nothing is plugged in.
func (c *cable) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
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
