package qemu

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/serialport"
)

// streams is the host's end of a device that carries a machine's streams.
type streams interface {
	Serve(ctx context.Context, conn net.Conn) error // until QEMU hangs up
	Reset(at time.Time)                             // the guest was reset then
	Resume()                                        // before Serve: the guest has streams to another one
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Listen(port uint32) (net.Listener, error)
	Close() // breaks all
}

// backend is a device that this process has, by vhost-user.
type backend interface {
	Serve(ctx context.Context, conn net.Conn) error // until QEMU hangs up
}

// newStreams makes the device: a vsock, or a serial port where QEMU has no
// vhost-user or the driver was told so.
func (d *Driver) newStreams(log *slog.Logger) streams {
	if d.serial() {
		return serialport.New(log)
	}
	return newVsock(log)
}

// newPackets makes the network device for a network that takes its packets, nil
// where QEMU has to be it.
func (d *Driver) newPackets(n vm.Network, log *slog.Logger) backend {
	packets, ok := n.(vm.OffloadNetwork)
	if !ok || d.serial() {
		return nil
	}
	return newNetwork(packets, log)
}

// serial tells whether machines have a serial port instead of what needs
// vhost-user.
func (d *Driver) serial() bool { return d.opts.Serial || !hasVhostUser }
