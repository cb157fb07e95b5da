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
	ln     net.Listener
	dial   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	stop   context.CancelFunc
	served sync.WaitGroup
}

// LendLoopback lends a container another loopback than its own: what it connects to
// by TCP at 127.0.0.0/8 is what dial connects to there. dial is called by many at
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
	var ln net.Listener
	err = ns.Do(func() (err error) {
		ln, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err == nil {
		if err = firewall.RedirectLoopback(ns.FD(), ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			ln.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("cannot lend the container a loopback: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	sb.lent = &lentLoopback{ln: ln, dial: dial, stop: stop}
	sb.lent.served.Go(func() { sb.lent.accept(ctx) })
	return nil
}

// stopLoopback ends the loan. Called with op held.
func (sb *sandbox) stopLoopback() {
	if l := sb.lent; l != nil {
		sb.lent = nil
		l.stop()
		l.ln.Close()
		l.served.Wait()
	}
}

func (l *lentLoopback) accept(ctx context.Context) {
	free := make(chan struct{}, maxLent)
	for {
		free <- struct{}{}
		conn, err := l.ln.Accept()
		if err != nil {
			return
		}
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
	// Two bytes of family, two of port, four of address; the type is only as long.
	var sa *unix.IPv6Mreq
	cerr := raw.Control(func(fd uintptr) { sa, err = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST) })
	if err := errors.Join(cerr, err); err != nil {
		return to, fmt.Errorf("the address before the redirect: %w", err)
	}
	b := sa.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}
