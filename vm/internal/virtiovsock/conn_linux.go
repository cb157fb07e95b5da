package virtiovsock

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// closeTimeout is how long a closed connection waits for the guest to confirm,
// as Linux does. Its ports are taken until then.
const closeTimeout = 8 * time.Second

// connState is where a connection stands.
//
//	dialing ──response──▶ open ──Close──▶ closing ──reset, or 8 s──▶ gone
//	   └──────reset, or given up──▶ gone ◀──reset, or the guest closed──┘(open)
type connState int

const (
	stateOpen connState = iota
	stateDialing
	stateClosing
	stateGone // not in the device's table; what was received can still be read
)

// Packets that wait to be sent for a connection, in this order; data goes
// between doCredit and doShutdown.
const (
	doRequest = 1 << iota
	doResponse
	doCredit
	doShutdown
)

// conn is one connection. The device's mu guards it, but for the two mutexes
// that keep calls of one kind apart and are taken before it.
type conn struct {
	dev       *Device
	key       connKey
	fromGuest bool
	readMu    sync.Mutex
	writeMu   sync.Mutex

	state       connState
	err         error     // why it is gone
	closed      bool      // Close was called
	established bool      // it was open once
	lent        bool      // to the program, or about to be: it counts until Close
	backlog     *listener // where it waits to be accepted
	timer       *time.Timer

	// Sending.
	todo     int    // packets to send
	pending  []byte // what the Write under way has not sent
	turn     int    // bytes sent since it came to the front of the ready queue
	next     *conn  // in the ready queue
	queued   bool   // in the ready queue
	sent     uint32 // bytes, modulo 2^32, as all of vsock's counters
	peerFwd  uint32 // of these the guest has taken out of its buffer
	peerBuf  uint32 // the size of the guest's buffer
	shut     uint32 // our shutX flags
	writable sync.Cond
	writeBy  deadline

	// Receiving.
	buf      buffer
	want     []byte // where the Read that waits wants its data
	got      int    // how much of it was put there
	bufAlloc uint32 // what we promised
	fwd      uint32 // bytes taken out of buf
	toldFwd  uint32 // fwd as the guest knows it
	peerShut uint32 // the guest's shutX flags
	readable sync.Cond
	readBy   deadline
}

func (d *Device) newConn(key connKey, fromGuest bool) *conn {
	c := &conn{dev: d, key: key, fromGuest: fromGuest, lent: true, bufAlloc: bufferLarge}
	c.readable.L, c.writable.L = &d.mu, &d.mu
	if d.promised+bufferLarge > bufferBudget {
		c.bufAlloc = bufferSmall
	}
	d.promised += int(c.bufAlloc)
	if fromGuest {
		d.guestConns++
	} else {
		d.hostConns++
	}
	d.conns[key] = c
	return c
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	n, err := c.read(p)
	if n > 0 {
		c.offerCredit()
	}
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *conn) read(p []byte) (int, error) {
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.readBy.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case c.buf.n > 0:
			n := c.buf.read(p)
			c.fwd += uint32(n)
			return n, nil
		case c.peerShut&shutSend != 0:
			return 0, io.EOF
		case c.err != nil:
			return 0, c.err
		}
		c.want, c.got = p, 0
		c.readable.Wait()
		n := c.got
		c.want, c.got = nil, 0
		if n > 0 {
			return n, nil
		}
	}
}

// offerCredit tells the guest of the room that reading has made, once it is
// worth a packet.
func (c *conn) offerCredit() {
	if c.state == stateOpen && c.peerShut&shutSend == 0 && c.fwd-c.toldFwd >= c.bufAlloc/4 {
		c.post(doCredit)
		c.dev.run()
	}
}

// Write implements net.Conn. It returns once all of p is in the guest's receive
// buffers. Whoever holds the device's lock may send parts of p for it.
func (c *conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	c.pending = p
	var err error
	for first := true; ; first = false {
		if err = c.writeError(); err != nil || len(c.pending) == 0 {
			break
		}
		if first {
			c.post(0)
			c.dev.run()
			continue
		}
		c.writable.Wait()
	}
	n := len(p) - len(c.pending)
	c.pending = nil
	if err != nil && n == len(p) && n > 0 {
		err = nil // all of it went out before what came in between
	}
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *conn) writeError() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.writeBy.passed:
		return os.ErrDeadlineExceeded
	case c.shut&shutSend != 0 || c.peerShut&shutReceive != 0:
		return syscall.EPIPE
	}
	return c.err
}

// CloseWrite ends our side of the stream: the guest reads what was written and
// then end of file. Reading goes on.
func (c *conn) CloseWrite() error {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("close", net.ErrClosed)
	case c.state == stateGone && c.peerShut != shutBoth:
		return c.opError("close", c.err)
	}
	if c.shut&shutSend == 0 {
		c.shut |= shutSend
		c.writable.Broadcast()
		c.post(doShutdown)
		c.dev.run()
	}
	return nil
}

// Close implements net.Conn. What was written still reaches the guest, what was
// received is dropped.
func (c *conn) Close() error {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.pending = nil
	c.buf = buffer{}
	c.readBy.stop()
	c.writeBy.stop()
	c.readable.Broadcast()
	c.writable.Broadcast()
	c.lent = false
	if c.state != stateOpen {
		c.release()
		return nil
	}
	c.state = stateClosing
	c.shut = shutBoth
	c.timer = time.AfterFunc(closeTimeout, func() {
		c.dev.mu.Lock()
		defer c.dev.mu.Unlock()
		c.abort(net.ErrClosed, true)
		c.dev.run()
	})
	c.post(doShutdown)
	c.dev.run()
	return nil
}

// abort ends the connection at once, with err for whoever still uses it. tell
// says whether the guest needs to hear of it.
func (c *conn) abort(err error, tell bool) {
	if c.state == stateGone {
		return
	}
	d := c.dev
	c.state, c.err = stateGone, err
	c.todo = 0
	delete(d.conns, c.key)
	if c.timer != nil {
		c.timer.Stop()
	}
	if c.backlog != nil && c.peerShut != shutBoth { // else it may hold all the guest had to say
		c.backlog.remove(c)
		c.backlog, c.lent = nil, false
	}
	c.release()
	if tell && d.up {
		h := c.header(opReset)
		d.replies = append(d.replies, h)
	}
	c.readable.Broadcast()
	c.writable.Broadcast()
}

// release stops counting the connection. One that is gone counts as long as
// the program holds it and what it has received, or a guest that comes and goes
// could fill the host's memory.
func (c *conn) release() {
	if c.lent || c.state != stateGone {
		return
	}
	c.dev.promised -= int(c.bufAlloc)
	if c.fromGuest {
		c.dev.guestConns--
	} else {
		c.dev.hostConns--
	}
}

// post queues the connection for sending: packets of its todo, or data.
func (c *conn) post(todo int) {
	if c.state == stateGone {
		return
	}
	c.todo |= todo
	c.dev.ready.push(c)
}

// credit is how many bytes the guest has room for.
func (c *conn) credit() uint32 {
	if used := c.sent - c.peerFwd; used < c.peerBuf {
		return c.peerBuf - used
	}
	return 0
}

// sendable reports whether the connection has a packet to send now.
func (c *conn) sendable() bool {
	if c.state == stateGone {
		return false
	}
	return c.todo != 0 || c.state == stateOpen && len(c.pending) > 0 && c.writeError() == nil && c.credit() > 0
}

// header makes the header of a packet of this connection.
func (c *conn) header(op op) header {
	return header{
		srcCID: HostCID, dstCID: c.dev.cid, srcPort: c.key.host, dstPort: c.key.guest,
		typ: typeStream, op: op, bufAlloc: c.bufAlloc, fwdCnt: c.fwd,
	}
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return Addr{HostCID, c.key.host} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return Addr{c.dev.cid, c.key.guest} }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, true, true)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadlines(t, true, false)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadlines(t, false, true)
}

func (c *conn) setDeadlines(t time.Time, read, write bool) error {
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	if read {
		c.readBy.set(t, &c.readable)
	}
	if write {
		c.writeBy.set(t, &c.writable)
	}
	return nil
}

// deadline wakes those who wait for a condition when its time has come.
type deadline struct {
	passed bool
	timer  *time.Timer
}

func (dl *deadline) set(t time.Time, wake *sync.Cond) {
	dl.stop()
	dl.passed = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		dl.passed = true
		wake.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		wake.L.Lock()
		defer wake.L.Unlock()
		if dl.timer == timer { // not replaced while this waited for the lock
			dl.passed = true
			wake.Broadcast()
		}
	})
	dl.timer = timer
}

func (dl *deadline) stop() {
	if dl.timer != nil {
		dl.timer.Stop()
		dl.timer = nil
	}
}

// connQueue is a first-in first-out queue of connections, each in it at most
// once.
type connQueue struct{ head, tail *conn }

func (q *connQueue) push(c *conn) {
	if c.queued {
		return
	}
	c.queued, c.next, c.turn = true, nil, 0
	if q.head == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

func (q *connQueue) pop() {
	c := q.head
	q.head, c.next, c.queued = c.next, nil, false
}

// buffer is a ring buffer that grows to what is needed.
type buffer struct {
	data  []byte
	start int
	n     int
}

// keepBuffer is how large a buffer may stay when it is empty.
const keepBuffer = 64 << 10

// reserve makes room for n more bytes, never more than limit in all.
func (b *buffer) reserve(n, limit int) {
	need := b.n + n
	if need <= len(b.data) {
		return
	}
	size := max(len(b.data), 4<<10)
	for size < need {
		size *= 2
	}
	data := make([]byte, max(min(size, limit), need))
	k := b.peek(data)
	b.data, b.start, b.n = data, 0, k
}

// fill lets read put n bytes behind what is there. There must be room.
func (b *buffer) fill(n int, read func([]byte) int) {
	for n > 0 {
		at := (b.start + b.n) % len(b.data)
		k := read(b.data[at:min(at+n, len(b.data))])
		if k == 0 {
			return
		}
		b.n += k
		n -= k
	}
}

func (b *buffer) peek(p []byte) int {
	first := b.data[min(b.start, len(b.data)):min(b.start+b.n, len(b.data))]
	n := copy(p, first)
	if n == len(first) {
		n += copy(p[n:], b.data[:b.n-n])
	}
	return n
}

func (b *buffer) read(p []byte) int {
	n := b.peek(p)
	b.n -= n
	if b.n > 0 {
		b.start = (b.start + n) % len(b.data)
		return n
	}
	b.start = 0
	if len(b.data) > keepBuffer {
		b.data = nil
	}
	return n
}
