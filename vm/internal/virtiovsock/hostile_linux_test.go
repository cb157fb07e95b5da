package virtiovsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

// TestStrayPackets: what belongs to no connection is answered by a reset or not
// at all.
func TestStrayPackets(t *testing.T) {
	tests := []struct {
		name  string
		h     header
		reset bool
	}{
		{"request to a closed port", header{op: opRequest}, true},
		{"response to nobody", header{op: opResponse}, true},
		{"data to nobody", header{op: opData}, true},
		{"shutdown of nothing", header{op: opShutdown, flags: shutBoth}, true},
		{"unknown operation", header{op: 99}, true},
		{"no operation", header{}, true},
		{"datagram", header{op: opRequest, typ: 3, dstPort: 9}, true},
		{"seqpacket", header{op: opRequest, typ: 2, dstPort: 9}, true},
		{"reset of nothing", header{op: opReset}, false},
		{"from another guest", header{op: opRequest, srcCID: testCID + 1, dstPort: 9}, false},
		{"from the host", header{op: opRequest, srcCID: HostCID, dstPort: 9}, false},
		{"to another guest", header{op: opRequest, dstCID: testCID + 1, dstPort: 9}, false},
		{"to a long CID", header{op: opRequest, dstCID: HostCID | 1<<32, dstPort: 9}, false},
	}
	g := startGuest(t, guestConfig{raw: true})
	listen(t, g.dev, 9)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.h.srcPort = 5
			g.send(test.h, nil)
			if !test.reset {
				g.quiet()
				return
			}
			p := g.next()
			want := header{srcCID: HostCID, dstCID: testCID, srcPort: test.h.dstPort, dstPort: 5, op: opReset, typ: max(test.h.typ, typeStream)}
			if p.header != want {
				t.Errorf("got  %+v\nwant %+v", p.header, want)
			}
		})
	}
	checkEmpty(t, g.dev)
}

// connect opens a connection in raw mode.
func (g *guest) connect(l net.Listener, port uint32) halfCloser {
	g.t.Helper()
	g.send(header{op: opRequest, srcPort: port, dstPort: 9, bufAlloc: 1000}, nil)
	if p := g.next(); p.op != opResponse || p.dstPort != port {
		g.t.Fatalf("got %+v instead of a response", p.header)
	}
	return accept(g.t, l)
}

// TestViolations: whoever breaks the rules of a connection loses it, and nobody
// else does.
func TestViolations(t *testing.T) {
	tests := []struct {
		name string
		h    []header
		data int // bytes that the last one carries
	}{
		{"request again", []header{{op: opRequest}}, 0},
		{"response", []header{{op: opResponse}}, 0},
		{"no operation", []header{{}}, 0},
		{"unknown operation", []header{{op: 8}}, 0},
		{"another type", []header{{op: opData, typ: 2}}, 1},
		{"length beyond the packet", []header{{op: opData, len: 101}}, 100},
		{"length beyond everything", []header{{op: opData, len: 1<<32 - 1}}, 100},
		{"data after the end", []header{{op: opShutdown, flags: shutSend}, {op: opData}}, 1},
		{"data over the credit", []header{{op: opData}, {op: opData}, {op: opData}, {op: opData}, {op: opData}}, maxPayload},
	}
	g := startGuest(t, guestConfig{raw: true})
	l := listen(t, g.dev, 9)
	bystander := g.connect(l, 1)
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			port := uint32(100 + i)
			c := g.connect(l, port)
			for j, h := range test.h {
				h.srcPort, h.dstPort = port, 9
				var data []byte
				if h.op == opData && (j == len(test.h)-1 || test.data == maxPayload) {
					data = make([]byte, test.data)
				}
				g.send(h, data)
			}
			if p := g.next(); p.op != opReset || p.dstPort != port || p.srcPort != 9 {
				t.Errorf("got %+v instead of a reset", p.header)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Write: %v", err)
			}
			c.Close()
		})
	}
	g.quiet()
	g.send(header{op: opData, srcPort: 1, dstPort: 9}, []byte("fine"))
	b := make([]byte, 4)
	if _, err := io.ReadFull(bystander, b); err != nil || string(b) != "fine" {
		t.Errorf("the bystander reads %q, %v", b, err)
	}
}

// TestCreditLies: no count of the guest makes us send more than it has room for
// by its own account, or stop for good.
func TestCreditLies(t *testing.T) {
	g := startGuest(t, guestConfig{raw: true})
	l := listen(t, g.dev, 9)
	c := g.connect(l, 5) // with credit for 1000
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 2500))
		wrote <- err
	}()
	update := func(bufAlloc, fwd uint32) {
		g.send(header{op: opCreditUpdate, srcPort: 5, dstPort: 9, bufAlloc: bufAlloc, fwdCnt: fwd}, nil)
	}
	expect := func(n int) {
		t.Helper()
		if p := g.next(); p.op != opData || len(p.payload) != n {
			t.Fatalf("got %+v, want data of %d bytes", p.header, n)
		}
	}
	expect(1000)
	update(1000, 1001) // more than was sent
	g.quiet()
	update(1000, 1<<32-5) // less than nothing
	g.quiet()
	update(0, 1000) // all of it, but no more room
	g.quiet()
	update(10, 1000)
	expect(10)
	update(1000, 900) // an old count that was overtaken
	expect(990)
	update(1<<32-1, 2000)
	expect(500)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

// TestReplyFlood: a guest that provokes answers and takes none of them is left
// to itself, with bounded memory.
func TestReplyFlood(t *testing.T) {
	const flood = 3000
	g := startGuest(t, guestConfig{raw: true, noRx: true})
	for i := range flood {
		g.send(header{op: opRequest, srcPort: uint32(i), dstPort: 1}, nil)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		g.dev.mu.Lock()
		n, paused := len(g.dev.replies), g.dev.txPaused
		g.dev.mu.Unlock()
		if n > maxReplies {
			t.Fatalf("%d replies wait", n)
		}
		if paused {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the flood is not stopped")
		}
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.dev.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial without receive buffers: %v", err)
	}
	for i := range flood {
		if i%100 == 0 {
			g.refill(100)
		}
		if p := g.next(); p.op != opReset || p.dstPort != uint32(i) {
			t.Fatalf("reply %d is %+v", i, p.header)
		}
	}
	g.quiet()
}

// TestUselessBuffers: receive buffers without room for a packet are wasted, not
// waited for and not written behind.
func TestUselessBuffers(t *testing.T) {
	g := startGuest(t, guestConfig{raw: true, noRx: true})
	off := g.fe.Alloc(64)
	g.rxMu.Lock()
	for range 20 {
		g.rx.Offer(vhosttest.Buffer{Off: off, Len: headerLen - 1, Write: true})
		g.rx.Offer(vhosttest.Buffer{Off: off, Len: 64}) // not writable at all
	}
	g.rxMu.Unlock()
	g.rx.ForceKick()
	g.halt() // its receiver would complain
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		g.dev.Dial(ctx, 7)
	}()
	for i := 0; i < 40; i++ {
		if !g.rx.Wait(5 * time.Second) {
			t.Fatalf("%d of 40 buffers came back", i)
		}
		if _, n, _ := g.rx.Take(); n != 0 {
			t.Errorf("%d bytes in a buffer of 43", n)
		}
	}
	if !bytes.Equal(g.fe.Memory()[off:off+64], make([]byte, 64)) {
		t.Error("it was written to")
	}
}

// TestBrokenRings: a ring that makes no sense ends all connections of its guest
// and is good again after a reboot.
func TestBrokenRings(t *testing.T) {
	tests := []struct {
		name  string
		wreck func(g *guest)
	}{
		{"avail index jumps", func(g *guest) { g.tx.SetAvailIdx(40000) }},
		{"no such descriptor", func(g *guest) { g.tx.OfferHead(128) }},
		{"looped chain", func(g *guest) {
			g.tx.SetDesc(0, g.fe.GuestAddr(0), 1, 1, 0)
			g.tx.OfferHead(0)
		}},
		{"buffer nowhere", func(g *guest) {
			g.tx.SetDesc(0, 0xdead_0000_0000, 44, 0, 0)
			g.tx.OfferHead(0)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := startGuest(t, guestConfig{})
			echoing := func(c *guestConn) {
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				c.CloseWrite()
			}
			g.handle(7, echoing)
			c := dial(t, g.dev, 7)
			g.halt()
			test.wreck(g)
			g.tx.ForceKick()
			within(t, 5*time.Second, "Read", func() {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("Read: %v", err)
				}
			})
			if _, err := g.dev.Dial(context.Background(), 7); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("Dial: %v", err)
			}
			g.reboot()
			if err := echo(dial(t, g.dev, 7), 10<<10); err != nil {
				t.Errorf("after reboot: %v", err)
			}
		})
	}
}

// FuzzHeader: every header survives the trip through its bytes.
func FuzzHeader(f *testing.F) {
	f.Add(make([]byte, headerLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen {
			return
		}
		var again [headerLen]byte
		h := decodeHeader((*[headerLen]byte)(b))
		h.encode(&again)
		if !bytes.Equal(again[:], b[:headerLen]) {
			t.Errorf("%x became %x", b[:headerLen], again)
		}
	})
}

// FuzzPackets throws sequences of packets at a device with a listener that
// reads, writes and closes. Each starts with two bytes for the length of its
// payload; operations, ports and lengths are kept near the sensible ones.
func FuzzPackets(f *testing.F) {
	seed := func(ops ...op) {
		var b []byte
		for _, o := range ops {
			h := header{op: o, len: 10, typ: typeStream, flags: 3, bufAlloc: 1000}
			var raw [headerLen]byte
			h.encode(&raw)
			b = append(append(b, 10, 0), raw[20:]...)
		}
		f.Add(b)
	}
	seed(opRequest, opData, opCreditRequest, opShutdown)
	seed(opRequest, opReset, opRequest, opCreditUpdate, opData, opData)
	g := startGuest(f, guestConfig{raw: true})
	l := listen(f, g.dev, 9)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Millisecond))
				c.Write(make([]byte, 3000))
				io.CopyN(io.Discard, c, 100)
			}()
		}
	}()
	go func() {
		for {
			select {
			case <-g.packets:
			case <-g.stop:
				return
			}
		}
	}()
	f.Fuzz(func(t *testing.T, b []byte) {
		const step = 2 + headerLen - 20
		for sent := 0; len(b) >= step && sent < 200; b = b[step:] {
			var raw [headerLen]byte
			copy(raw[20:], b[2:step])
			h := decodeHeader(&raw)
			h.srcPort, h.dstPort = h.dstPort%4, 9+h.dstPort>>31
			g.send(h, make([]byte, int(binary.LittleEndian.Uint16(b))))
			sent++
		}
		g.dev.mu.Lock()
		defer g.dev.mu.Unlock()
		if len(g.dev.replies) > 2*maxReplies || len(g.dev.conns) > maxGuestConns || !g.dev.up {
			t.Errorf("%d replies, %d connections, up %t", len(g.dev.replies), len(g.dev.conns), g.dev.up)
		}
		for _, c := range g.dev.conns {
			if c.buf.n > int(c.bufAlloc) || len(c.buf.data) > int(c.bufAlloc) {
				t.Errorf("a connection holds %d bytes in a buffer of %d", c.buf.n, len(c.buf.data))
			}
		}
	})
}
