package fakeguest

import (
	"context"
	"net"

	"github.com/berthvm/berth/guest/wire"
)

// Network is a network cable that leads nowhere. It implements daemon.Network.
type Network struct{}

// MAC implements vm.Network.
func (Network) MAC() net.HardwareAddr {
	return net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee}
}

// ServeStream implements vm.Network.
func (Network) ServeStream(ctx context.Context, conn net.Conn) error { return wait(ctx, conn) }

// ServeDatagram implements vm.Network.
func (Network) ServeDatagram(ctx context.Context, conn net.Conn) error { return wait(ctx, conn) }

func wait(ctx context.Context, conn net.Conn) error {
	<-ctx.Done()
	return conn.Close()
}

// Guest implements daemon.Network.
func (Network) Guest() wire.Network {
	return wire.Network{Address: "192.168.127.2/24", Gateway: "192.168.127.1", MTU: 1500,
		DNS: []string{"192.168.127.1"}, Host: "192.168.127.254"}
}

// Close implements daemon.Network.
func (Network) Close() error { return nil }
