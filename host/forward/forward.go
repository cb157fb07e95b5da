// Package forward leads connections from one side of a machine to the other: the
// user's, which arrive at a socket of the host's, into the guest, and the guest's
// to the host's loopback. It carries bytes and looks into none of them; each
// direction ends on its own (half-close).
//
// A connection that carries nothing costs two goroutines and no buffer, where the
// operating system can wait without one.
package forward

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// dialTimeout bounds what a forwarded connection waits for its other end.
const dialTimeout = 30 * time.Second

// Serve gives each connection to l one from dial and copies both ways. It returns
// when l is closed and every connection has ended, with nil; or when ctx is done,
// with l closed and every connection broken; or when l fails, with why. A
// connection for which dial fails is closed.
func Serve(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) error {
	return serve(ctx, l, func(ctx context.Context, c net.Conn) {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		far, err := dial(dctx)
		cancel()
		if err != nil {
			return
		}
		Splice(ctx, c, far)
	})
}

// serve calls handle for each connection, on a goroutine of its own. The
// connection is closed after handle, and when ctx is done.
func serve(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for delay := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			delay = 0
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				handle(ctx, c)
			})
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return nil
		case isTransient(err):
			// Out of descriptors, or a client that was gone already: go on, slowly.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
		default:
			l.Close()
			cancel()
			return err
		}
	}
}

// Splice copies between a and b until both directions have ended, or one has
// failed, or ctx is done. It closes both.
func Splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	wg.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	wg.Wait()
}

// oneWay copies from src to dst and hands the end on. When that fails both are
// closed, so that neither side waits for what cannot come.
func oneWay(dst, src net.Conn) {
	if err := transfer(dst, src); err == nil {
		if h, ok := dst.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
			return
		}
		// Without half-close the end can only be told by closing.
	}
	dst.Close()
	src.Close()
}
