package usernet

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isFull reports whether a socket had no room for a datagram, or it was too long
// for the way: it is lost, as on a wire.
func isFull(err error) bool {
	return errors.Is(err, windows.WSAENOBUFS) || errors.Is(err, windows.WSAEMSGSIZE)
}

// isRefused reports whether an earlier datagram found nobody.
func isRefused(err error) bool {
	return errors.Is(err, windows.WSAECONNREFUSED) || errors.Is(err, windows.WSAECONNRESET)
}
