package usernet

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpIdle ends a flow that has been silent both ways.
const udpIdle = 60 * time.Second

// forwardUDP takes the guest's datagrams to everywhere. A flow is a pair of
// addresses and ports; it has a connected socket on the host.
func (n *Network) forwardUDP() packetHandler {
	f := udp.NewForwarder(n.stack, func(r *udp.ForwarderRequest) {
		// On the goroutine that reads the cable: nothing here may block.
		to, ok := allowed(address(r.ID().LocalAddress))
		if !ok || !n.enter() {
			return
		}
		if !n.udpFlows.take() {
			n.wg.Done()
			return
		}
		// The endpoint takes the flow's further datagrams from now on.
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		if terr != nil {
			n.udpFlows.release()
			n.wg.Done()
			return
		}
		go func() {
			defer n.wg.Done()
			defer n.udpFlows.release()
			n.flow(gonet.NewUDPConn(&wq, ep), netip.AddrPortFrom(to, r.ID().LocalPort))
		}()
	})
	return f.HandlePacket
}

// flow carries one flow's datagrams until it is idle.
func (n *Network) flow(guest net.Conn, to netip.AddrPort) {
	defer guest.Close()
	host, err := n.dial("udp", to)
	if err != nil {
		n.log.Debug("the guest's datagram has no way", "to", to, "error", err)
		return
	}
	defer host.Close()
	defer context.AfterFunc(n.ctx, func() { guest.Close(); host.Close() })()
	var last atomic.Int64 // when something was seen, in either direction
	last.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	wg.Go(func() { datagrams(guest, host, &last) })
	datagrams(host, guest, &last)
	wg.Wait()
}

// datagrams copies until the flow is idle or a side is closed. An error that ICMP
// brings (a port nobody listens on) does not end it: somebody may come to listen.
func datagrams(dst, src net.Conn, last *atomic.Int64) {
	defer dst.Close()
	defer src.Close()
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		until := time.Unix(0, last.Load()).Add(udpIdle)
		src.SetReadDeadline(until)
		size, err := src.Read(*b)
		if err != nil {
			if isRefused(err) {
				continue
			}
			if e, ok := err.(net.Error); ok && e.Timeout() && time.Unix(0, last.Load()).Add(udpIdle).After(time.Now()) {
				continue // the other direction is busy
			}
			return
		}
		last.Store(time.Now().UnixNano())
		if _, err := dst.Write((*b)[:size]); err != nil && !isRefused(err) && !isFull(err) {
			if e, ok := err.(net.Error); !ok || !e.Timeout() {
				return
			}
		}
	}
}
