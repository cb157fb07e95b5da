package vmfake

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes one direction of a stream holds before its writer
// has to wait, as a vsock's credit does.
const window = 256 << 10

// half is one direction of a stream: a bounded buffer between one conn that
// writes and one that reads.
type half struct {
	mu      sync.Mutex
	buf     []byte
	eof     bool          // the writer is done; what is buffered stays readable
	deaf    bool          // the reader is gone: writing is pointless
	reset   bool          // the machine went away beneath the stream
	changed chan struct{} // closed and replaced at every change
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

// change applies f and wakes whoever waits.
func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// tryRead takes what is there. When nothing is, it returns the channel to wait
// on.
func (h *half) tryRead(p []byte) (int, <-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.reset:
		return 0, nil, syscall.ECONNRESET
	case len(h.buf) > 0:
		n := copy(p, h.buf)
		h.buf = h.buf[n:]
		close(h.changed)
		h.changed = make(chan struct{})
		return n, nil, nil
	case h.eof:
		return 0, nil, io.EOF
	}
	return 0, h.changed, nil
}

// tryWrite stores what fits. When nothing does, it returns the channel to wait
// on.
func (h *half) tryWrite(p []byte) (int, <-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.reset:
		return 0, nil, syscall.ECONNRESET
	case h.eof, h.deaf:
		return 0, nil, syscall.EPIPE
	}
	n := min(len(p), window-len(h.buf))
	if n == 0 {
		return 0, h.changed, nil
	}
	h.buf = append(h.buf, p[:n]...)
	close(h.changed)
	h.changed = make(chan struct{})
	return n, nil, nil
}

// conn is one end of a stream.
type conn struct {
	in, out       *half
	local, remote Addr
	onClose       func()

	closing sync.Once
	closed  chan struct{}
	reading sync.Mutex // serialises readers, so that each sees a run of bytes
	writing sync.Mutex // likewise writers: one Write's bytes stay together
	rd, wd  deadline
}

// newStream returns the two ends of a stream between two addresses.
func newStream(a, b Addr) (*conn, *conn) {
	ab, ba := newHalf(), newHalf()
	ca := &conn{in: ba, out: ab, local: a, remote: b, closed: make(chan struct{})}
	cb := &conn{in: ab, out: ba, local: b, remote: a, closed: make(chan struct{})}
	return ca, cb
}

func (c *conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.local, Addr: c.remote, Err: err}
}

// wait blocks until changed is closed, or returns why waiting is over.
func (c *conn) wait(changed <-chan struct{}, d *deadline) error {
	select {
	case <-changed:
		return nil
	case <-c.closed:
		return net.ErrClosed
	case <-d.wait():
		return os.ErrDeadlineExceeded
	}
}

// ready fails when the end is closed or its deadline has passed.
func (c *conn) ready(d *deadline) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-d.wait():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		if err := c.ready(&c.rd); err != nil {
			return 0, c.opError("read", err)
		}
		n, changed, err := c.in.tryRead(p)
		if err != nil || n > 0 || len(p) == 0 {
			return n, c.opError("read", err)
		}
		if err := c.wait(changed, &c.rd); err != nil {
			return 0, c.opError("read", err)
		}
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	done := 0
	for {
		if err := c.ready(&c.wd); err != nil {
			return done, c.opError("write", err)
		}
		n, changed, err := c.out.tryWrite(p[done:])
		done += n
		if err != nil || done == len(p) {
			return done, c.opError("write", err)
		}
		if n > 0 {
			continue
		}
		if err := c.wait(changed, &c.wd); err != nil {
			return done, c.opError("write", err)
		}
	}
}

// CloseWrite ends this direction; the peer reads what is buffered, then io.EOF.
func (c *conn) CloseWrite() error {
	if err := c.ready(&deadline{}); err != nil {
		return c.opError("close", err)
	}
	c.out.change(func() { c.out.eof = true })
	return nil
}

// Close implements net.Conn. The peer reads what was written before.
func (c *conn) Close() error {
	err := c.opError("close", net.ErrClosed)
	c.closing.Do(func() {
		err = nil
		close(c.closed)
		c.out.change(func() { c.out.eof = true })
		c.in.change(func() { c.in.deaf = true; c.in.buf = nil })
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// abort ends both directions with ECONNRESET, for both ends.
func (c *conn) abort() {
	for _, h := range []*half{c.in, c.out} {
		h.change(func() { h.reset = true; h.buf = nil })
	}
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.rd, t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.wd, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	select {
	case <-c.closed:
		return c.opError("set", net.ErrClosed)
	default:
	}
	d.set(t)
	return nil
}

// deadline is a point in time that can be moved while others wait for it. Its
// zero value never comes.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	gone  chan struct{} // closed when the deadline has passed
}

// wait returns the channel that is closed once the deadline has passed. A
// deadline that is moved later wakes nobody, so the channel stays good.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone == nil {
		d.gone = make(chan struct{})
	}
	return d.gone
}

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.gone // the timer fired: let it finish before the channel is replaced
	}
	d.timer = nil
	passed := false
	if d.gone == nil {
		d.gone = make(chan struct{})
	}
	select {
	case <-d.gone:
		passed = true
	default:
	}
	if t.IsZero() || time.Until(t) > 0 {
		if passed {
			d.gone = make(chan struct{})
		}
		if !t.IsZero() {
			gone := d.gone
			d.timer = time.AfterFunc(time.Until(t), func() { close(gone) })
		}
		return
	}
	if !passed {
		close(d.gone)
	}
}
