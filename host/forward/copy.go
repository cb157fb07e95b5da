package forward

import (
	"io"
	"net"
	"sync"
)

const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// transfer copies src to dst up to src's end. Between two sockets of the kernel
// the kernel may copy; a source that can wait without a buffer does.
func transfer(dst, src net.Conn) error {
	if isSocket(dst) && isSocket(src) {
		_, err := io.Copy(dst, src)
		return err
	}
	if w, ok := src.(io.WriterTo); ok && !isSocket(src) {
		_, err := w.WriteTo(dst)
		return err
	}
	if read := waitingReader(src); read != nil {
		return copyWaiting(dst, read)
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// Only Reader and Writer: other methods would bring buffers of their own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
	return err
}

func isSocket(c net.Conn) bool {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// copyWaiting holds a buffer only from the moment that there is something to read
// until it is written.
func copyWaiting(dst io.Writer, read func() (*[]byte, int, error)) error {
	for {
		b, n, err := read()
		if n > 0 {
			_, werr := dst.Write((*b)[:n])
			if err == nil {
				err = werr
			}
		}
		if b != nil {
			buffers.Put(b)
		}
		if err != nil || n == 0 {
			return err
		}
	}
}
