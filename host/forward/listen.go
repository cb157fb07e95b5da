package forward

import (
	"context"
	"errors"
	"net"
)

// ErrInUse says that somebody listens at an address already.
var ErrInUse = errors.New("address is in use by another process")

// Listen opens an endpoint for this user alone: a unix socket of mode 0600, which
// appears at once and replaces one that nobody listens on, or on Windows a named
// pipe (\\.\pipe\...) that only the system, administrators and the user may open.
// Where somebody listens the error wraps ErrInUse. Closing removes the socket.
func Listen(address string) (net.Listener, error) { return listen(address) }

// Dial connects to an endpoint of Listen's.
func Dial(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, address) }
