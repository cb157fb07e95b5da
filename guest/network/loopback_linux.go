package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/network/internal/firewall"
	"github.com/berthvm/berth/guest/network/internal/link"
	"github.com/berthvm/berth/guest/relay"
)

// maxLent bounds the connections of one container to a lent loopback.
const maxLent = 64

// lentLoopback takes the connections of one container to its loopback elsewhere.
type lentLoopback struct {
	lns    []net.Listener // one for each family
	dial   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	stop   context.CancelFunc
	served sync.WaitGroup
}

// LendLoopback lends a container another loopback than its own: what it connects to
// by TCP at 127.0.0.0/8 or ::1 is what dial connects to there. dial is called by many at
// once; its connections have CloseWrite. The loan ends with Release. The container
// must be on a network, and nothing that it runs itself listens on its loopback.
func (m *Manager) LendLoopback(containerID string, dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)) error {
	sb, err := m.lockSandbox(containerID, false)
	if err != nil {
		return err
	}
	if sb == nil {
		return notFound("container %s is on no network", containerID)
	}
	defer m.unlock(sb)
	if sb.lent != nil {
		return fmt.Errorf("container %s has been lent a loopback", containerID)
	}
	ns, err := link.OpenNS(sb.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	sockets, err := listenLoopback(ns)
	if err != nil {
		return fmt.Errorf("cannot lend the container a loopback: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	lent := &lentLoopback{lns: sockets, dial: dial, stop: stop}
	sb.lent = lent
	free := make(chan struct{}, maxLent)
	for _, ln := range sockets {
		lent.served.Go(func() { lent.accept(ctx, ln, free) })
	}
	return nil
}

// listenLoopback opens the sockets that connections to a namespace's loopback reach
// from now on: one for each family that it has.
func listenLoopback(ns *link.NS) (sockets []net.Listener, err error) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var ln net.Listener
		err = ns.Do(func() (err error) {
			ln, err = net.Listen("tcp", address)
			return err
		})
		if len(sockets) > 0 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
			break // a machine without IPv6
		}
		if err == nil {
			sockets = append(sockets, ln)
			err = firewall.RedirectLoopback(ns.FD(), ln.Addr().(*net.TCPAddr).AddrPort())
		}
		if err != nil {
			for _, ln := range sockets {
				ln.Close()
			}
			return nil, err
		}
	}
	return sockets, nil
}

// stopLoopback ends the loan. Called with op held.
func (sb *sandbox) stopLoopback() {
	if l := sb.lent; l != nil {
		sb.lent = nil
		l.stop()
		for _, ln := range l.lns {
			ln.Close()
		}
		l.served.Wait()
	}
}

// accept takes the connections to one socket, each of which has one of free.
func (l *lentLoopback) accept(ctx context.Context, ln net.Listener, free chan struct{}) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		free <- struct{}{}
		l.served.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			if err := l.serve(ctx, conn.(*net.TCPConn)); err != nil {
				_ = conn.(*net.TCPConn).SetLinger(0) // a reset says that nobody is there
			}
		})
	}
}

// serve connects one connection with where it wanted to go.
func (l *lentLoopback) serve(ctx context.Context, conn *net.TCPConn) error {
	to, err := wanted(conn)
	if err != nil {
		return err
	}
	far, err := l.dial(ctx, to)
	if err != nil {
		return err
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { conn.Close(); far.Close() })()
	return relay.Join(conn, far)
}

// wanted is the address that a redirected connection was made to.
func wanted(conn *net.TCPConn) (to netip.AddrPort, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return to, err
	}
	six := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Is6()
	cerr := raw.Control(func(fd uintptr) {
		if six {
			// A socket's address; the type has it, and a number behind it.
			var sa *unix.IPv6MTUInfo
			if sa, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, unix.SO_ORIGINAL_DST); err == nil {
				to = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr.Addr), bigEndian(sa.Addr.Port))
			}
			return
		}
		// Two bytes of family, two of port, four of address; the type is only as long.
		var sa *unix.IPv6Mreq
		if sa, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil {
			b := sa.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		return to, fmt.Errorf("the address before the redirect: %w", err)
	}
	return to, nil
}

// bigEndian is a number that the kernel has in the network's order.
func bigEndian(n uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, n))
}
