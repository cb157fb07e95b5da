package hyperv

import (
	"context"
	"net"
)

// platform is what this package needs of Windows besides compute.Service. It is
// safe for concurrent use.
type platform interface {
	// user is the SID of this process's user.
	user() (string, error)
	// dial and listen are the sockets of the machine with that runtime id.
	// A listener's Accept returns net.ErrClosed once it is closed.
	dial(ctx context.Context, machine string, port uint32) (net.Conn, error)
	listen(machine string, port uint32) (net.Listener, error)
	// pipe opens a pipe that machines may connect to.
	pipe(name string) (net.Listener, error)
}
