package forward

import (
	"errors"
	"net"

	"golang.org/x/sys/windows"
)

// waitingReader returns nil: sockets and pipes of Windows read into a buffer that
// is there from the start.
func waitingReader(net.Conn) func() (*[]byte, int, error) { return nil }

// isTransient reports whether accepting may work again.
func isTransient(err error) bool {
	for _, e := range []error{windows.WSAEMFILE, windows.WSAENOBUFS, windows.WSAECONNRESET, windows.ERROR_NO_DATA} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
