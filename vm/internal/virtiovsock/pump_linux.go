package virtiovsock

import (
	"net"
	"syscall"

	"github.com/berthvm/berth/vm/internal/vhostuser"
)

const (
	// flushEvery is how many bytes go to the guest between two looks it gets at
	// the ring: measured, fewer and larger is better.
	flushEvery = 256 << 10
	// turnBytes is how much one connection sends before the next has its turn.
	turnBytes = 64 << 10
)

// maxBatches is how many times in a row one call looks at a ring. A guest that
// fills its rings as fast as we empty them must not hold up whoever came by to
// write one byte; the rest is left to a goroutine of its own.
const maxBatches = 8

// run does all that can be done now: it sends, and takes up the guest's packets
// again if sending has made room for the replies to them. Like send and receive
// it may let go of mu for a moment.
func (d *Device) run() {
	d.send()
	if d.txPaused && len(d.replies) < maxReplies {
		d.receive()
	}
}

// later runs on in a goroutine, which Serve waits for.
func (d *Device) later() {
	if d.continuing || !d.running {
		return
	}
	d.continuing = true
	d.work.Go(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.continuing = false
		d.receive()
		d.run()
	})
}

// receive handles the packets the guest has sent. It stops, with txPaused set,
// while too many replies wait: answering depends on the guest's receive
// buffers, and a guest that gives none must not make the queue grow.
func (d *Device) receive() {
	for range maxBatches {
		if !d.running || !d.tx.Begin() {
			return
		}
		d.tx.DisableKicks()
		for len(d.replies) < maxReplies && d.tx.Pop(&d.txChain) {
			d.packet(&d.txChain)
			d.tx.Push(&d.txChain, 0)
		}
		d.txPaused = len(d.replies) >= maxReplies
		more := !d.txPaused && d.tx.EnableKicks()
		err := d.tx.Err()
		d.tx.End()
		if err != nil {
			d.broken()
			return
		}
		d.send()
		if !more && (!d.txPaused || len(d.replies) >= maxReplies) {
			return
		}
		d.breathe()
	}
	d.later()
}

// send moves replies, then what the connections have, into the guest's receive
// buffers until there is nothing to send or no buffer. In the latter case the
// guest is asked to kick with the next one.
func (d *Device) send() {
	for range maxBatches {
		if !d.sendable() || !d.running || !d.rx.Begin() {
			return
		}
		more, err := d.sendBatch()
		d.rx.End()
		if err != nil {
			d.broken()
			return
		}
		if !more {
			return
		}
		d.breathe()
	}
	d.later()
}

// sendBatch sends what one batch of the ring takes, and reports whether another
// one would take more.
func (d *Device) sendBatch() (more bool, err error) {
	for unflushed := 0; d.sendable() && d.rx.Pop(&d.rxChain); {
		n := d.emit(&d.rxChain)
		d.rx.Push(&d.rxChain, uint32(n))
		if unflushed += n; unflushed >= flushEvery {
			d.rx.Flush()
			unflushed = 0
		}
	}
	if d.sendable() {
		more = d.rx.EnableKicks()
	} else {
		d.rx.DisableKicks()
	}
	return more, d.rx.Err()
}

// breathe lets others have the lock.
func (d *Device) breathe() {
	d.mu.Unlock()
	d.mu.Lock()
}

// broken ends everything: nothing can be said to this driver any more.
func (d *Device) broken() {
	d.running = false
	d.forget()
}

// sendable reports whether anything can be sent, and if it is a connection's,
// leaves that at the head of the ready queue.
func (d *Device) sendable() bool {
	if len(d.replies) > 0 {
		return true
	}
	for d.ready.head != nil && !d.ready.head.sendable() {
		d.ready.pop()
	}
	return d.ready.head != nil
}

// emit writes the next packet into a receive buffer and returns its length. A
// buffer without room for a header is wasted.
func (d *Device) emit(chain *vhostuser.Chain) int {
	if chain.Writable() < headerLen {
		return 0
	}
	if len(d.replies) > 0 {
		h := d.replies[0]
		d.replies = d.replies[1:]
		return put(chain, h, nil)
	}
	c := d.ready.head
	n := c.emit(chain)
	if c.turn += n; c.turn >= turnBytes || !c.sendable() {
		d.ready.pop()
		if c.sendable() {
			d.ready.push(c)
		}
	}
	return n
}

// emit writes the connection's next packet.
func (c *conn) emit(chain *vhostuser.Chain) int {
	c.toldFwd = c.fwd
	for _, t := range [...]struct {
		bit int
		op  op
	}{{doRequest, opRequest}, {doResponse, opResponse}, {doCredit, opCreditUpdate}} {
		if c.todo&t.bit != 0 {
			c.todo &^= t.bit
			return put(chain, c.header(t.op), nil)
		}
	}
	if c.todo&doShutdown != 0 {
		c.todo &^= doShutdown
		h := c.header(opShutdown)
		h.flags = c.shut
		return put(chain, h, nil)
	}
	room := min(chain.Writable()-headerLen, maxPayload, uint64(c.credit()), uint64(len(c.pending)))
	h := c.header(opData)
	h.len = uint32(room)
	n := put(chain, h, c.pending[:room])
	c.pending = c.pending[room:]
	c.sent += uint32(room)
	c.todo &^= doCredit
	if len(c.pending) == 0 {
		c.writable.Signal()
	}
	return n
}

func put(chain *vhostuser.Chain, h header, payload []byte) int {
	var b [headerLen]byte
	h.encode(&b)
	return chain.Write(b[:]) + chain.Write(payload)
}

// packet handles one packet of the guest.
func (d *Device) packet(chain *vhostuser.Chain) {
	var b [headerLen]byte
	if chain.Read(b[:]) < headerLen {
		d.log.Debug("dropped a vsock packet without a header")
		return
	}
	h := decodeHeader(&b)
	if h.srcCID != d.cid || h.dstCID != HostCID {
		d.log.Debug("dropped a vsock packet with foreign addresses", "from", h.srcCID, "to", h.dstCID)
		return
	}
	c := d.conns[connKey{h.dstPort, h.srcPort}]
	if c != nil && c.state == stateClosing && h.op == opRequest {
		c.abort(net.ErrClosed, false) // the guest has forgotten it and uses its port again
		c = nil
	}
	switch {
	case c != nil && h.typ == typeStream && h.len <= maxPayload && uint64(h.len) <= chain.Readable():
		d.connPacket(c, h, chain)
	case c != nil:
		c.violated("impossible packet")
	case h.op == opReset:
	case h.op == opRequest && h.typ == typeStream && d.accept(h):
	default:
		d.replies = append(d.replies, header{
			srcCID: HostCID, dstCID: d.cid, srcPort: h.dstPort, dstPort: h.srcPort, typ: h.typ, op: opReset,
		})
	}
}

// accept takes a connection if somebody listens for it.
func (d *Device) accept(h header) bool {
	l := d.listeners[h.dstPort]
	if l == nil || len(l.queue) >= backlog || d.guestConns >= maxGuestConns {
		return false
	}
	c := d.newConn(connKey{h.dstPort, h.srcPort}, true)
	c.peerBuf = h.bufAlloc
	c.backlog = l
	c.post(doResponse)
	l.queue = append(l.queue, c)
	l.arrived.Signal()
	return true
}

// connPacket handles a packet of a connection, whose length is that of the
// chain at most.
func (d *Device) connPacket(c *conn, h header, chain *vhostuser.Chain) {
	c.updateCredit(h)
	switch {
	case h.op == opReset && c.state == stateDialing:
		c.abort(syscall.ECONNREFUSED, false)
	case h.op == opReset:
		c.abort(syscall.ECONNRESET, false)
	case h.op == opResponse && c.state == stateDialing && c.todo&doRequest == 0:
		c.state = stateOpen
		c.established = true
		c.readable.Broadcast()
	case c.state == stateDialing:
		c.violated("answer that is neither yes nor no")
	case h.op == opData:
		c.data(int(h.len), chain)
	case h.op == opCreditUpdate:
	case h.op == opCreditRequest:
		c.post(doCredit)
	case h.op == opShutdown:
		c.peerShutdown(h.flags & shutBoth)
	default:
		c.violated("packet out of turn")
	}
}

// updateCredit takes over what every packet says of the guest's buffer. Packets
// may overtake each other in the guest, so that a count may be older than the
// one we have; one that is ahead of what we have sent is a lie. Neither counts.
func (c *conn) updateCredit(h header) {
	c.peerBuf = h.bufAlloc
	if h.fwdCnt-c.peerFwd <= c.sent-c.peerFwd {
		c.peerFwd = h.fwdCnt
	}
	if len(c.pending) > 0 {
		c.post(0)
	}
}

// data receives n bytes, straight into the buffer of a Read that waits if there
// is one.
func (c *conn) data(n int, chain *vhostuser.Chain) {
	switch {
	case c.peerShut&shutSend != 0:
		c.violated("data after the end")
		return
	case c.closed:
		c.fwd += uint32(n) // nobody will read it
		return
	case n > int(c.bufAlloc)-c.buf.n:
		c.violated("more data than it was given credit for")
		return
	}
	if len(c.want) > 0 && c.buf.n == 0 {
		k := chain.Read(c.want[:min(n, len(c.want))])
		c.want = c.want[k:]
		c.got += k
		c.fwd += uint32(k)
		n -= k
	}
	if n > 0 {
		c.buf.reserve(n, int(c.bufAlloc))
		c.buf.fill(n, chain.Read)
	}
	c.readable.Signal()
}

// peerShutdown notes what the guest will do no more. After both there is
// nothing left but to confirm; what was received stays readable.
func (c *conn) peerShutdown(flags uint32) {
	c.peerShut |= flags
	c.readable.Broadcast()
	c.writable.Broadcast()
	if c.peerShut == shutBoth {
		c.abort(syscall.ECONNRESET, true)
	}
}

// violated resets a connection whose guest end breaks the rules.
func (c *conn) violated(how string) {
	c.dev.log.Debug("reset a vsock connection", "host", c.key.host, "guest", c.key.guest, "why", how)
	c.abort(syscall.ECONNRESET, true)
}
