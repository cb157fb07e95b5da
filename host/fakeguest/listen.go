package fakeguest

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
)

// Listen opens a unix socket, as daemon.Options.Listen does.
func Listen(address string) (net.Listener, error) {
	os.Remove(address)
	return net.Listen("unix", address)
}

// Forward copies streams, as daemon.Options.Forward does.
func Forward(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		streams.Go(func() {
			defer conn.Close()
			guest, err := dial(ctx)
			if err != nil {
				return
			}
			defer guest.Close()
			defer context.AfterFunc(ctx, func() {
				conn.Close()
				guest.Close()
			})()
			var both sync.WaitGroup
			both.Go(func() { pass(guest, conn) })
			both.Go(func() { pass(conn, guest) })
			both.Wait()
		})
	}
}

func pass(to, from net.Conn) {
	io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// Loopback refuses every stream, as daemon.Options.Loopback may.
func Loopback(_ context.Context, l net.Listener, _ func() []byte) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		conn.Close()
	}
}

// Publish refuses every stream, as daemon.Options.Publish may.
func Publish(ctx context.Context, l net.Listener, secret func() []byte, _ func(context.Context) (net.Conn, error)) error {
	return Loopback(ctx, l, secret)
}
