//go:build !windows

package api

import (
	"context"
	"net"
)

func dial(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", address)
}

func isAbsent(error) bool { return false } // net.OpError says so
