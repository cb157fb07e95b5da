// Package relay joins two connections that each have TCP's half-close.
package relay

import (
	"errors"
	"io"
	"net"
	"sync"
)

// halfCloser is a connection with TCP's half-close.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// buffers are reused: fresh ones for each connection would make the collector run
// after every few dozen.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// Join copies both ways until both have ended. The connections are the caller's to
// close, before that, too, which ends it. It is an error if one has no CloseWrite.
func Join(a, b net.Conn) error {
	x, ok := a.(halfCloser)
	y, ok2 := b.(halfCloser)
	if !ok || !ok2 {
		return errors.New("a connection without half-close")
	}
	errs := make(chan error, 2)
	pipe := func(dst, src halfCloser) {
		buf := buffers.Get().(*[64 << 10]byte)
		// Only Reader and Writer: other methods would bring buffers of their own.
		_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
		buffers.Put(buf)
		if err != nil {
			// A reset on one side must not leave the other waiting.
			dst.Close()
			src.Close()
		} else {
			dst.CloseWrite()
		}
		errs <- err
	}
	go pipe(x, y)
	go pipe(y, x)
	return errors.Join(<-errs, <-errs)
}
