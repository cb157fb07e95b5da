package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// tellEvery is how often the guest is told that its ports are in use.
const tellEvery = 10 * time.Second

// ways lead to the guest's containers.
type ways struct {
	portal Portal
	direct Direct // nil: by portal only

	telling sync.WaitGroup
	told    atomic.Int64 // when the guest was last told of use, in Unix nanoseconds
}

// inUse tells the guest, if it was not told lately, that a published port is in use
// of which it would not know: it gives up memory when nothing is.
func (w *ways) inUse(ctx context.Context) {
	now, last := time.Now().UnixNano(), w.told.Load()
	if now-last < int64(tellEvery) || !w.told.CompareAndSwap(last, now) {
		return
	}
	w.telling.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if c, err := w.open(ctx, wire.PortalRequest{}); err == nil {
			c.Close()
		}
	})
}

// open opens a portal stream.
func (w *ways) open(ctx context.Context, req wire.PortalRequest) (net.Conn, error) {
	c, err := w.portal(ctx)
	if err != nil {
		return nil, err
	}
	if err := wire.WriteFrame(c, req); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// target is what one published port leads to.
type target struct {
	*ways
	id   uint64
	addr atomic.Pointer[netip.AddrPort] // nil: by the portal
}

// set takes over what the guest says.
func (t *target) set(to wire.PublishTarget) {
	addr, err := netip.ParseAddrPort(to.Target)
	if err != nil || !addr.Addr().Is4() || addr.Port() == 0 {
		t.addr.Store(nil)
		return
	}
	t.addr.Store(&addr)
}

// follow takes over what the guest says until it says nothing more, or nonsense.
func (t *target) follow(r io.Reader) {
	for {
		var to wire.PublishTarget
		if err := wire.ReadFrame(io.LimitReader(r, maxRequest), &to); err != nil {
			return
		}
		t.set(to)
	}
}

// connect connects a client at peer, directly where that is possible.
func (t *target) connect(ctx context.Context, peer string) (c net.Conn, direct bool, err error) {
	if addr := t.addr.Load(); addr != nil && t.direct != nil {
		c, err := t.direct(ctx, *addr)
		if !errors.Is(err, errors.ErrUnsupported) {
			return c, true, err
		}
	}
	c, err = t.portalStream(ctx, peer)
	return c, false, err
}

// portalStream opens the portal stream of a client at peer.
func (t *target) portalStream(ctx context.Context, peer string) (net.Conn, error) {
	return t.open(ctx, wire.PortalRequest{ID: t.id, Peer: peer})
}
