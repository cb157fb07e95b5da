package virtiovsock

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

const testCID = 42

// packet is what travels over the rings.
type packet struct {
	header
	payload []byte
}

// guestConfig says how the toy guest behaves.
type guestConfig struct {
	features uint64 // ring features; version 1 is implied
	ringSize uint16 // 128 if 0
	rxBuffer int    // bytes of each receive buffer; 3776 as Linux has them if 0
	bufAlloc uint32 // credit it gives; 256 KiB if 0
	raw      bool   // packets go to guest.packets; there are no connections
	noRx     bool   // offers no receive buffers until refill is called
}

// guest is a toy vsock driver and socket layer that behaves as Linux does, over
// rings in a memfd.
type guest struct {
	t   testing.TB
	cfg guestConfig
	fe  *vhosttest.FrontEnd
	rx  *vhosttest.Ring
	tx  *vhosttest.Ring
	dev *Device

	rxMu   sync.Mutex
	rxBufs map[uint16]uint64 // by head: where the buffer is
	rxFree []uint64

	packets chan packet // raw mode

	mu     sync.Mutex
	cond   sync.Cond
	out    []packet // to be sent
	conns  map[connKey]*guestConn
	listen map[uint32]func(*guestConn)
	port   uint32

	stop  chan struct{}
	tasks sync.WaitGroup
	txBuf []uint64
	txOf  map[uint16]uint64

	served chan error
}

// startGuest boots a toy guest with a device of its own.
func startGuest(t testing.TB, cfg guestConfig) *guest {
	t.Helper()
	return startGuestOn(t, New(Options{GuestCID: testCID}), cfg)
}

func startGuestOn(t testing.TB, dev *Device, cfg guestConfig) *guest {
	t.Helper()
	if cfg.ringSize == 0 {
		cfg.ringSize = 128
	}
	if cfg.rxBuffer == 0 {
		cfg.rxBuffer = 3776
	}
	if cfg.bufAlloc == 0 {
		cfg.bufAlloc = 256 << 10
	}
	front, back := vhosttest.Pair(t)
	g := &guest{
		t: t, cfg: cfg, dev: dev, fe: vhosttest.New(t, front, 32<<20),
		packets: make(chan packet, 4096), rxBufs: make(map[uint16]uint64), txOf: make(map[uint16]uint64),
		listen: make(map[uint32]func(*guestConn)), conns: make(map[connKey]*guestConn), port: 5000,
		served: make(chan error, 1),
	}
	g.cond.L = &g.mu
	go func() { g.served <- dev.Serve(context.Background(), back) }()
	g.fe.Realize(8)
	g.rx, g.tx = g.fe.NewRing(0, cfg.ringSize), g.fe.NewRing(1, cfg.ringSize)
	for range cfg.ringSize {
		g.rxFree = append(g.rxFree, g.fe.Alloc(cfg.rxBuffer))
	}
	for range min(cfg.ringSize/2, 64) {
		g.txBuf = append(g.txBuf, g.fe.Alloc(headerLen+maxPayload+64))
	}
	if !cfg.noRx {
		g.refill(int(cfg.ringSize))
	}
	g.fe.Start(vhosttest.FeatureVersion1|cfg.features, g.rx, g.tx)
	g.run()
	t.Cleanup(func() {
		g.halt()
		g.fe.Close()
		if err := <-g.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return g
}

// run starts the guest's tasks, halt ends them.
func (g *guest) run() {
	g.mu.Lock()
	g.stop = make(chan struct{})
	g.mu.Unlock()
	g.tasks.Go(g.receiver)
	g.tasks.Go(g.sender)
}

func (g *guest) halt() {
	g.mu.Lock()
	select {
	case <-g.stop:
	default:
		close(g.stop)
	}
	g.cond.Broadcast()
	g.mu.Unlock()
	g.tasks.Wait()
}

func (g *guest) halted() bool {
	select {
	case <-g.stop:
		return true
	default:
		return false
	}
}

// reboot resets the machine and starts the driver anew.
func (g *guest) reboot() {
	g.halt()
	g.fe.Stop(g.rx, g.tx)
	g.rx.Reset()
	g.tx.Reset()
	for head, off := range g.rxBufs {
		g.rxFree = append(g.rxFree, off)
		delete(g.rxBufs, head)
	}
	for head, off := range g.txOf {
		g.txBuf = append(g.txBuf, off)
		delete(g.txOf, head)
	}
	g.mu.Lock()
	for _, c := range g.conns {
		c.end(true)
	}
	g.out = nil
	g.cond.Broadcast()
	g.mu.Unlock()
	g.refill(int(g.cfg.ringSize))
	g.fe.Start(vhosttest.FeatureVersion1|g.cfg.features, g.rx, g.tx)
	g.run()
}

// pause and resume stop and start the rings where they are.
func (g *guest) pause()  { g.fe.Stop(g.rx, g.tx) }
func (g *guest) resume() { g.fe.Start(vhosttest.FeatureVersion1|g.cfg.features, g.rx, g.tx) }

// refill offers up to n receive buffers.
func (g *guest) refill(n int) {
	g.rxMu.Lock()
	defer g.rxMu.Unlock()
	for ; n > 0 && len(g.rxFree) > 0; n-- {
		off := g.rxFree[0]
		g.rxFree = g.rxFree[1:]
		g.rxBufs[g.rx.Offer(vhosttest.Buffer{Off: off, Len: uint32(g.cfg.rxBuffer), Write: true})] = off
	}
	g.rx.Kick()
}

func (g *guest) receiver() {
	for !g.halted() {
		if !g.rx.Wait(20 * time.Millisecond) {
			continue
		}
		var got []packet
		g.rxMu.Lock()
		for {
			head, n, ok := g.rx.Take()
			if !ok {
				break
			}
			off := g.rxBufs[head]
			delete(g.rxBufs, head)
			g.rxFree = append(g.rxFree, off)
			b := bytes.Clone(g.fe.Memory()[off : off+uint64(n)])
			if len(b) < headerLen {
				g.t.Errorf("device wrote a packet of %d bytes", len(b))
				continue
			}
			p := packet{decodeHeader((*[headerLen]byte)(b)), b[headerLen:]}
			if int(p.len) != len(p.payload) {
				g.t.Errorf("device wrote %d bytes of payload and says %d", len(p.payload), p.len)
			}
			got = append(got, p)
		}
		g.rxMu.Unlock()
		if !g.cfg.noRx {
			g.refill(len(got))
		}
		for _, p := range got {
			if g.cfg.raw {
				select {
				case g.packets <- p:
				case <-g.stop:
				}
			} else {
				g.dispatch(p)
			}
		}
	}
}

// send queues a packet for the device.
func (g *guest) send(h header, payload []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sendLocked(h, payload)
}

func (g *guest) sendLocked(h header, payload []byte) {
	if h.srcCID == 0 {
		h.srcCID = testCID
	}
	if h.dstCID == 0 {
		h.dstCID = HostCID
	}
	if h.typ == 0 {
		h.typ = typeStream
	}
	if h.len == 0 {
		h.len = uint32(len(payload))
	}
	g.out = append(g.out, packet{h, bytes.Clone(payload)})
	g.cond.Broadcast()
}

func (g *guest) sender() {
	for {
		g.mu.Lock()
		for len(g.out) == 0 && !g.halted() {
			g.cond.Wait()
		}
		if g.halted() {
			g.mu.Unlock()
			return
		}
		p := g.out[0]
		g.out = g.out[1:]
		g.mu.Unlock()
		g.reclaim()
		for len(g.txBuf) == 0 || g.tx.Free() < 4 {
			if g.halted() {
				return
			}
			g.tx.Wait(20 * time.Millisecond)
			g.reclaim()
		}
		g.offerPacket(p)
		g.tx.Kick()
	}
}

func (g *guest) reclaim() {
	for {
		head, _, ok := g.tx.Take()
		if !ok {
			return
		}
		g.txBuf = append(g.txBuf, g.txOf[head])
		delete(g.txOf, head)
	}
}

// offerPacket lays a packet out in one of the ways drivers may choose.
func (g *guest) offerPacket(p packet) {
	off := g.txBuf[0]
	g.txBuf = g.txBuf[1:]
	var h [headerLen]byte
	p.encode(&h)
	mem := g.fe.Memory()
	copy(mem[off:], h[:])
	copy(mem[off+headerLen:], p.payload)
	total := headerLen + len(p.payload)
	cut := rand.IntN(total + 1)
	bufs := []vhosttest.Buffer{{Off: off, Len: uint32(cut)}, {Off: off + uint64(cut), Len: uint32(total - cut)}}
	var head uint16
	switch {
	case g.cfg.features&vhosttest.FeatureIndirect != 0 && cut%2 == 0:
		head = g.tx.OfferIndirect((off+uint64(total)+15)&^15, bufs...)
	case cut%3 == 0:
		head = g.tx.Offer(vhosttest.Buffer{Off: off, Len: uint32(total)})
	default:
		head = g.tx.Offer(bufs...)
	}
	g.txOf[head] = off
}

// next returns the next packet in raw mode.
func (g *guest) next() packet {
	g.t.Helper()
	select {
	case p := <-g.packets:
		return p
	case <-time.After(5 * time.Second):
		g.t.Fatal("no packet from the device")
		panic("unreachable")
	}
}

// quiet checks that the device sends nothing for a while.
func (g *guest) quiet() {
	g.t.Helper()
	select {
	case p := <-g.packets:
		g.t.Fatalf("unexpected packet %+v", p.header)
	case <-time.After(50 * time.Millisecond):
	}
}

// handle makes the guest listen on a port.
func (g *guest) handle(port uint32, do func(*guestConn)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listen[port] = do
}

// guestConn is a stream socket of the toy guest.
type guestConn struct {
	g     *guest
	key   connKey
	open  bool
	gone  bool
	reset bool // ended without a shutdown

	buf            bytes.Buffer
	fwd, toldFwd   uint32
	sent, peerFwd  uint32
	peerBuf        uint32
	shut, peerShut uint32
}

func (g *guest) newConn(key connKey) *guestConn {
	c := &guestConn{g: g, key: key}
	g.conns[key] = c
	return c
}

func (g *guest) dispatch(p packet) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.srcCID != HostCID || p.dstCID != testCID || p.typ != typeStream {
		g.t.Errorf("device sent impossible header %+v", p.header)
		return
	}
	key := connKey{p.srcPort, p.dstPort}
	c := g.conns[key]
	if c == nil {
		handler := g.listen[key.guest]
		switch {
		case p.op == opRequest && handler != nil:
			c = g.newConn(key)
			c.open = true
			c.peerBuf = p.bufAlloc
			c.sendLocked(opResponse, 0, nil)
			go handler(c)
		case p.op != opReset:
			g.sendLocked(header{srcPort: p.dstPort, dstPort: p.srcPort, op: opReset}, nil)
		}
		return
	}
	c.packet(p)
	g.cond.Broadcast()
}

func (c *guestConn) packet(p packet) {
	c.peerBuf, c.peerFwd = p.bufAlloc, p.fwdCnt
	switch p.op {
	case opResponse:
		c.open = true
	case opReset:
		c.end(c.peerShut&shutSend == 0)
	case opData:
		if c.buf.Len()+len(p.payload) > int(c.g.cfg.bufAlloc) {
			c.g.t.Errorf("device sent %d bytes over its credit", c.buf.Len()+len(p.payload)-int(c.g.cfg.bufAlloc))
		}
		c.buf.Write(p.payload)
	case opShutdown:
		c.peerShut |= p.flags
		if c.peerShut == shutBoth && c.buf.Len() == 0 {
			c.sendLocked(opReset, 0, nil)
			c.end(false)
		}
	case opCreditRequest:
		c.sendLocked(opCreditUpdate, 0, nil)
	case opCreditUpdate:
	default:
		c.g.t.Errorf("device sent operation %d to an open connection", p.op)
	}
}

func (c *guestConn) end(reset bool) {
	c.gone, c.reset = true, reset
	delete(c.g.conns, c.key)
}

func (c *guestConn) sendLocked(op op, flags uint32, payload []byte) {
	c.toldFwd = c.fwd
	c.g.sendLocked(header{srcPort: c.key.guest, dstPort: c.key.host, op: op, flags: flags, bufAlloc: c.g.cfg.bufAlloc, fwdCnt: c.fwd}, payload)
}

// dial connects to a port of the host.
func (g *guest) dial(port uint32) (*guestConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.port++
	c := g.newConn(connKey{port, g.port})
	c.sendLocked(opRequest, 0, nil)
	for !c.open && !c.gone && !g.halted() {
		g.cond.Wait()
	}
	if !c.open {
		return nil, syscall.ECONNRESET
	}
	return c, nil
}

func (c *guestConn) Read(p []byte) (int, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for c.buf.Len() == 0 {
		switch {
		case c.peerShut&shutSend != 0:
			return 0, io.EOF
		case c.gone || c.g.halted():
			return 0, syscall.ECONNRESET
		}
		c.g.cond.Wait()
	}
	n, _ := c.buf.Read(p)
	c.fwd += uint32(n)
	// As Linux does: only when what it advertised falls below 64 KiB.
	if int(c.g.cfg.bufAlloc)-int(c.fwd-c.toldFwd) < 64<<10 && !c.gone {
		c.sendLocked(opCreditUpdate, 0, nil)
	}
	if c.buf.Len() == 0 && c.peerShut == shutBoth && !c.gone {
		c.sendLocked(opReset, 0, nil)
		c.end(false)
	}
	return n, nil
}

func (c *guestConn) Write(p []byte) (int, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	total := 0
	for len(p) > 0 {
		credit := int(int32(c.peerBuf - (c.sent - c.peerFwd)))
		switch {
		case c.gone || c.g.halted():
			return total, syscall.ECONNRESET
		case c.peerShut&shutReceive != 0:
			return total, syscall.EPIPE
		case credit <= 0 || len(c.g.out) > 64:
			c.g.cond.Wait()
			continue
		}
		n := min(len(p), credit, maxPayload)
		c.sendLocked(opData, 0, p[:n])
		c.sent += uint32(n)
		p = p[n:]
		total += n
	}
	return total, nil
}

func (c *guestConn) shutdown(flags uint32) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.shut |= flags
	if !c.gone {
		c.sendLocked(opShutdown, c.shut, nil)
	}
}

func (c *guestConn) CloseWrite() error { c.shutdown(shutSend); return nil }

// Close ends both directions and, unlike Linux, waits for the confirmation.
func (c *guestConn) Close() error {
	c.shutdown(shutBoth)
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for !c.gone && !c.g.halted() {
		c.g.cond.Wait()
	}
	return nil
}
