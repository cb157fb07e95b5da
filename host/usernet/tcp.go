package usernet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const dialTimeout = 30 * time.Second

type packetHandler = func(stack.TransportEndpointID, *stack.PacketBuffer) bool

// forwardTCP takes the guest's connections to everywhere. The handshake with the
// guest is completed only when the host has connected, so that a refusal is seen
// as one.
func (n *Network) forwardTCP() packetHandler {
	f := tcp.NewForwarder(n.stack, 0, maxDials, func(r *tcp.ForwarderRequest) {
		// On a goroutine that the forwarder has started.
		if !n.enter() {
			r.Complete(true)
			return
		}
		defer n.wg.Done()
		to, ok := allowed(address(r.ID().LocalAddress))
		if !ok || !n.tcpFlows.take() {
			r.Complete(true)
			return
		}
		defer n.tcpFlows.release()
		host, err := n.dial("tcp", netip.AddrPortFrom(to, r.ID().LocalPort))
		if err != nil {
			n.log.Debug("the guest's connection failed", "to", to, "port", r.ID().LocalPort, "error", err)
			r.Complete(true)
			return
		}
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		r.Complete(false)
		if terr != nil {
			host.Close()
			return
		}
		ep.SocketOptions().SetDelayOption(false)
		ep.SocketOptions().SetKeepAlive(true)
		n.splice(gonet.NewTCPConn(&wq, ep), host)
	})
	return f.HandlePacket
}

// dial connects for the guest. Where the host's IPv4 loopback refuses, its IPv6
// one may have the listener.
func (n *Network) dial(network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	c, err := n.opts.Dial(ctx, network, to.String())
	if err != nil && to.Addr().IsLoopback() && errors.Is(err, syscall.ECONNREFUSED) {
		if c6, err6 := n.opts.Dial(ctx, network, netip.AddrPortFrom(netip.IPv6Loopback(), to.Port()).String()); err6 == nil {
			return c6, nil
		}
	}
	return c, err
}

// DialGuest connects to a TCP port of the guest's or, by the guest as the router, of
// one of its containers. The other end sees Gateway as the client's address. The
// connection has half-close. Unless the guest's device takes offloads, which make this
// the fastest way into the guest, DialGuest fails with errors.ErrUnsupported.
func (n *Network) DialGuest(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if !n.cable.offloads() || !to.Addr().Is4() {
		return nil, fmt.Errorf("cannot connect to %s by the machine's network: %w", to, errors.ErrUnsupported)
	}
	if !n.enter() {
		return nil, net.ErrClosed
	}
	defer n.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	full := func(a netip.AddrPort) tcpip.FullAddress {
		return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
	}
	return gonet.DialTCPWithBind(ctx, n.stack, full(netip.AddrPortFrom(Gateway, 0)), full(to), ipv4.ProtocolNumber)
}

func address(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip.Unmap()
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// splice copies both ways until both have ended, each end on its own.
func (n *Network) splice(guest *gonet.TCPConn, host net.Conn) {
	defer context.AfterFunc(n.ctx, func() { guest.Close(); host.Close() })()
	defer guest.Close()
	defer host.Close()
	var wg sync.WaitGroup
	wg.Go(func() { pipe(guest, host) })
	pipe(host, guest)
	wg.Wait()
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// pipe copies from src to dst, and hands the end on. When dst fails src is closed,
// so that its sender learns it.
func pipe(dst, src net.Conn) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// Only Reader and Writer: their other methods would bring buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
	if err != nil {
		src.Close()
		dst.Close()
		return
	}
	if h, ok := dst.(halfCloser); ok {
		h.CloseWrite()
	}
}
