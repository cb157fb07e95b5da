//go:build unix

package forward

import (
	"errors"
	"net"
	"syscall"
)

// waitingReader returns a function that waits until src has data or has ended and
// then reads into a pooled buffer, which the caller puts back; n is zero at the
// end. It returns nil if src is not a socket.
func waitingReader(src net.Conn) func() (b *[]byte, n int, err error) {
	if !isSocket(src) {
		return nil
	}
	raw, err := src.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	return func() (b *[]byte, n int, err error) {
		werr := raw.Read(func(fd uintptr) bool {
			b = buffers.Get().(*[]byte)
			for {
				n, err = syscall.Read(int(fd), *b)
				if err != syscall.EINTR {
					break
				}
			}
			if err == syscall.EAGAIN {
				buffers.Put(b)
				b, n, err = nil, 0, nil
				return false
			}
			return true
		})
		n = max(n, 0)
		if werr != nil {
			err = werr
		}
		return b, n, err
	}
}

// isTransient reports whether accepting may work again.
func isTransient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
