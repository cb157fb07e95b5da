//go:build !windows

package elevated

import (
	"context"
	"net"

	"github.com/berthvm/berth/vm/hyperv/compute"
)

// Client is the service, which only Windows has.
func Client() compute.Service {
	return client{
		func(context.Context) (net.Conn, error) { return nil, ErrNotInstalled },
		func() error { _, err := compute.Local().Probe(context.Background()); return err },
	}
}
