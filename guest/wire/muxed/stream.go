package muxed

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	sendBuffer = 64 << 10 // bytes of a stream that wait to be sent
	keepBuffer = 16 << 10 // the largest empty buffer that an idle stream keeps
)

// Stream is one end of a stream: a net.Conn with CloseWrite. It is safe for
// concurrent use. Close delivers what was written before, unless the other end
// does not take it for half a minute.
type Stream struct {
	s    *Session
	id   uint32
	port uint32

	// The session's mu guards what follows.

	readable, writable sync.Cond
	read, written      deadline
	linger             *time.Timer
	queued             bool  // in the session's ready
	open               bool  // accepted
	closed             bool  // by Close
	err                error // why it is broken

	in       []byte
	granted  int  // bytes that the other end may still send
	owed     int  // bytes read for which no credit was given yet
	inEnded  bool // the other end has
	stopSent bool

	out     []byte
	credit  int  // bytes that the other end will take
	ending  bool // CloseWrite was called
	endSent bool
	stopped bool // the other end reads no more

	signals uint8 // bit of each kind that has to be sent: open, accept, reset
}

// deadline wakes waiters when it strikes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(at time.Time, wake func()) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if left := time.Until(at); !at.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, wake)
	}
}

func (st *Stream) wakeAll() {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.readable.Broadcast()
	st.writable.Broadcast()
}

func (st *Stream) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: network, Addr: Addr(st.port), Err: err}
}

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (int, error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	for {
		switch {
		case st.closed:
			return 0, st.opError("read", net.ErrClosed)
		case st.read.passed():
			return 0, st.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case len(st.in) > 0:
			return st.take(p), nil
		case st.inEnded:
			return 0, io.EOF
		case st.err != nil:
			return 0, st.opError("read", st.err)
		}
		st.readable.Wait()
	}
}

// take moves bytes to p, and gives credit for them once they are many.
func (st *Stream) take(p []byte) int {
	n := copy(p, st.in)
	st.in = st.in[n:]
	if len(st.in) == 0 && cap(st.in) <= keepBuffer {
		st.in = st.in[:0]
	} else if len(st.in) == 0 {
		st.in = nil
	}
	st.owed += n
	if st.owed >= Window/4 && !st.inEnded && st.err == nil {
		st.s.enqueue(st)
	}
	return n
}

// Write implements net.Conn.
func (st *Stream) Write(p []byte) (int, error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	total := 0
	for {
		switch {
		case st.closed, st.ending:
			return total, st.opError("write", net.ErrClosed)
		case st.err != nil:
			return total, st.opError("write", st.err)
		case st.stopped:
			return total, st.opError("write", syscall.EPIPE)
		case st.written.passed():
			return total, st.opError("write", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return total, nil
		}
		if n := min(len(p), sendBuffer-len(st.out)); n > 0 {
			st.out = append(st.out, p[:n]...)
			p, total = p[n:], total+n
			if st.credit > 0 {
				st.s.enqueue(st)
			}
			continue
		}
		st.writable.Wait()
	}
}

// CloseWrite ends the sending direction, after what was written.
func (st *Stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	switch {
	case st.closed:
		return st.opError("close", net.ErrClosed)
	case st.err != nil:
		return st.opError("close", st.err)
	}
	st.endWriting()
	return nil
}

func (st *Stream) endWriting() {
	if st.ending {
		return
	}
	st.ending = true
	st.writable.Broadcast()
	st.s.enqueue(st)
}

// Close implements net.Conn.
func (st *Stream) Close() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.closed {
		return st.opError("close", net.ErrClosed)
	}
	st.closed = true
	st.in = nil
	st.readable.Broadcast()
	st.endWriting()
	if st.err == nil {
		st.linger = time.AfterFunc(lingerFor, func() {
			st.s.mu.Lock()
			defer st.s.mu.Unlock()
			st.abort()
		})
		st.s.enqueue(st)
	}
	st.settle()
	return nil
}

// abort breaks the stream for both ends. The caller holds mu.
func (st *Stream) abort() {
	if st.err != nil || st.s.streams[st.id] != st {
		return
	}
	if st.signals&(1<<kindOpen) == 0 { // else the other end has not heard of it
		st.signals |= 1 << kindReset
	}
	st.signals &^= 1 << kindOpen
	st.fail(net.ErrClosed)
	st.s.enqueue(st)
}

// fail breaks this end. The caller holds mu.
func (st *Stream) fail(err error) {
	if st.err == nil {
		st.err = err
	}
	st.out = nil
	st.readable.Broadcast()
	st.writable.Broadcast()
	st.s.forget(st)
}

// settle forgets the stream if it is over. The caller holds mu.
func (st *Stream) settle() {
	if (st.inEnded || st.stopSent) && (st.endSent || st.stopped) {
		st.s.forget(st)
	}
}

func (st *Stream) stopTimers() {
	for _, t := range []*time.Timer{st.linger, st.read.timer, st.written.timer} {
		if t != nil {
			t.Stop()
		}
	}
}

// SetDeadline implements net.Conn.
func (st *Stream) SetDeadline(t time.Time) error {
	return st.setDeadlines(t, &st.read, &st.written)
}

// SetReadDeadline implements net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error { return st.setDeadlines(t, &st.read) }

// SetWriteDeadline implements net.Conn.
func (st *Stream) SetWriteDeadline(t time.Time) error { return st.setDeadlines(t, &st.written) }

func (st *Stream) setDeadlines(t time.Time, ds ...*deadline) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.closed {
		return st.opError("set", net.ErrClosed)
	}
	for _, d := range ds {
		d.set(t, st.wakeAll)
	}
	st.readable.Broadcast()
	st.writable.Broadcast()
	return nil
}

// LocalAddr implements net.Conn. The opener's end has no port.
func (st *Stream) LocalAddr() net.Addr { return Addr(st.port) }

// RemoteAddr implements net.Conn.
func (st *Stream) RemoteAddr() net.Addr { return Addr(st.port) }

// appendFrames moves what the stream has to send to buf, with at most one data
// frame, and queues the stream again if there is more. The caller holds mu.
func (st *Stream) appendFrames(buf []byte) []byte {
	send := func(k kind, value uint32) { buf = header{k, st.id, value}.appendTo(buf) }
	for _, k := range []kind{kindOpen, kindAccept, kindReset} {
		if st.signals&(1<<k) != 0 {
			value := uint32(0)
			if k == kindOpen {
				value = st.port
			}
			send(k, value)
		}
	}
	st.signals = 0
	if st.err != nil {
		return buf
	}
	if st.closed && !st.inEnded && !st.stopSent {
		send(kindStop, 0)
		st.stopSent = true
	}
	if st.owed > 0 && !st.closed && !st.inEnded {
		send(kindCredit, uint32(st.owed))
		st.granted += st.owed
		st.owed = 0
	}
	if n := min(len(st.out), st.credit, maxData); n > 0 && !st.stopped {
		send(kindData, uint32(n))
		buf = append(buf, st.out[:n]...)
		st.credit -= n
		st.sent(n)
	}
	switch {
	case len(st.out) > 0 && st.credit > 0:
		st.s.enqueue(st)
	case len(st.out) == 0 && st.ending && !st.endSent && !st.stopped:
		send(kindEnd, 0)
		st.endSent = true
	}
	st.settle()
	return buf
}

// sent drops the first n bytes of what waits to be sent.
func (st *Stream) sent(n int) {
	rest := copy(st.out, st.out[n:])
	st.out = st.out[:rest]
	if rest == 0 && cap(st.out) > keepBuffer {
		st.out = nil
	}
	st.writable.Broadcast()
}

// handle does what a frame for the stream says. The caller holds mu.
func (st *Stream) handle(h header, payload []byte) error {
	wrong := func(what string) error { return fmt.Errorf("%w: stream %d: %s", ErrProtocol, st.id, what) }
	mine := st.id&1 == uint32(st.s.side)
	switch {
	case h.kind == kindReset:
		err := syscall.ECONNRESET
		if !st.open && mine {
			err = syscall.ECONNREFUSED
		}
		st.fail(err)
		return nil
	case h.kind == kindAccept && mine && !st.open:
		st.open = true
		st.readable.Broadcast()
		return nil
	case h.kind == kindAccept:
		return wrong("accepted twice")
	case !st.open:
		return wrong("used before it was accepted")
	}
	switch h.kind {
	case kindData:
		return st.arrived(payload)
	case kindCredit:
		if h.value == 0 || int(h.value) > Window-st.credit {
			return wrong("more credit than there can be")
		}
		st.credit += int(h.value)
		if len(st.out) > 0 {
			st.s.enqueue(st)
		}
	case kindEnd:
		if st.inEnded {
			return wrong("ended twice")
		}
		st.inEnded = true
		st.readable.Broadcast()
		st.settle()
	case kindStop:
		if st.stopped {
			return wrong("stopped twice")
		}
		st.stopped = true
		st.out = nil
		st.writable.Broadcast()
		st.settle()
	}
	return nil
}

func (st *Stream) arrived(payload []byte) error {
	switch {
	case st.inEnded:
		return fmt.Errorf("%w: stream %d: data after its end", ErrProtocol, st.id)
	case len(payload) > st.granted:
		return fmt.Errorf("%w: stream %d: more data than it has credit for", ErrProtocol, st.id)
	}
	st.granted -= len(payload)
	if st.closed {
		return nil // nobody reads it any more
	}
	st.in = append(st.in, payload...)
	st.readable.Broadcast()
	return nil
}
