//go:build unix

package usernet

import (
	"errors"
	"syscall"
)

// isFull reports whether a socket had no room for a datagram, or it was too long
// for the way: it is lost, as on a wire.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EMSGSIZE)
}

// isRefused reports whether an earlier datagram found nobody.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
