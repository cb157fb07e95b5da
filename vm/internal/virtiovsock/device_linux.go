package virtiovsock

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// HostCID is the host's own address in every guest.
const HostCID = 2

var errTodo = errors.New("virtiovsock: not implemented yet")

// Options configures a Device. GuestCID is required, the rest has defaults.
type Options struct {
	GuestCID uint64       // the guest's address: at least 3, below 2^32-1
	Log      *slog.Logger // nil drops what would be logged
}

// Device is a virtio vsock device. Its methods are safe for concurrent use.
type Device struct {
	opts Options
}

// New makes a device. It starts nothing and holds nothing until Serve, Dial or
// Listen is called. It panics when GuestCID is not a guest's address, which is
// the program's mistake and not the user's.
func New(opts Options) *Device { return &Device{opts: opts} }

// Serve speaks vhost-user with the front-end (QEMU) over conn and carries the
// guest's packets until the front-end hangs up, ctx ends or Close is called. It
// closes conn and ends every connection of the guest before it returns. The
// error is nil when the front-end hung up in an orderly way or the device was
// closed, ctx's error when ctx ended, else what went wrong.
//
// One Serve runs at a time; a second one at once is an error.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error { return errTodo }

// Dial connects to a port on which the guest listens. The connection has
// CloseWrite and deadlines.
//
// A port nobody listens on fails at once with ECONNREFUSED, and so does any port
// while the guest's driver is not up: before it has started for the first time,
// and after Reset until it has started again. Dial does not wait for a guest to
// boot; callers dial after the guest has called them. While the guest is paused,
// and while it offers no receive buffers, Dial waits until ctx ends.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) { return nil, errTodo }

// Listen takes the guest's connections to a host port. It needs no running
// guest and outlives restarts of the guest. A second Listen on an open port
// fails with EADDRINUSE. Accepted connections have CloseWrite and deadlines;
// their remote address is an Addr. Connections beyond a backlog of 128 are
// refused.
func (d *Device) Listen(port uint32) (net.Listener, error) { return nil, errTodo }

// Reset drops every connection, as ECONNRESET, because the guest was reset. The
// listeners stay. Dial fails with ECONNREFUSED until the driver has started
// again. It does not block, and may be called late or for nothing: a restart is
// noticed without it too, only later.
func (d *Device) Reset() {}

// Close drops every connection and listener and ends Serve. Calls after it fail
// with net.ErrClosed. It may be called more than once and waits for nothing.
func (d *Device) Close() error { return nil }

// Addr is the address of one end of a vsock connection: a net.Addr.
type Addr struct {
	CID  uint64
	Port uint32
}
