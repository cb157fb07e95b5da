// Package hostdial lets the guest's programs connect to the host's loopback
// addresses, such as a registry on the host's localhost:5000. It is the client of
// wire.PortLoopbackHost.
package hostdial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/berthvm/berth/guest/wire"
)

// timeout bounds the host's answer, when ctx does not: the host connects to one
// of its own addresses.
const timeout = 15 * time.Second

// Dialer connects to addresses as the host's user means them: loopback is the
// host's, all else is reached directly. It is safe for concurrent use.
type Dialer struct {
	Secret []byte // of the boot, wire.SecretSize bytes
	// Connect opens a stream to wire.PortLoopbackHost.
	Connect func(ctx context.Context) (net.Conn, error)
	// Direct makes the other connections; nil means a net.Dialer.
	Direct func(ctx context.Context, network, addr string) (net.Conn, error)
}

// DialContext connects to addr, as net.Dialer's method does.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if IsLoopback(addr) {
		return d.DialHost(ctx, network, addr)
	}
	if d.Direct != nil {
		return d.Direct(ctx, network, addr)
	}
	return (&net.Dialer{Timeout: timeout}).DialContext(ctx, network, addr)
}

// DialHost connects to addr on the host's loopback. Errors are *net.OpError with
// Op "dial", as net's are.
func (d *Dialer) DialHost(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.dialHost(ctx, network, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s on the host: %w", addr, err)}
	}
	return conn, nil
}

func (d *Dialer) dialHost(ctx context.Context, network, addr string) (_ net.Conn, err error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, net.UnknownNetworkError(network)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("the machine's host does not answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = d.ask(conn, addr)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return conn, nil
}

// ask sends the request and waits for the reply.
func (d *Dialer) ask(conn net.Conn, addr string) error {
	if _, err := conn.Write(d.Secret); err != nil {
		return err
	}
	if err := wire.WriteFrame(conn, wire.DialRequest{Network: "tcp", Address: addr}); err != nil {
		return err
	}
	var reply wire.DialReply
	if err := wire.ReadFrame(conn, &reply); err != nil {
		return err
	}
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	return nil
}

// IsLoopback says whether addr, with or without a port, is localhost or a
// loopback address.
func IsLoopback(addr string) bool {
	host := addr
	if h, _, err := net.SplitHostPort(addr); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}
