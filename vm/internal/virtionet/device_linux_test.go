package virtionet

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	ringSize = 64
	rxBuffer = 1500
)

// network is a vm.OffloadNetwork that keeps what comes from the guest.
type network struct {
	vm.Network
	send   func(vm.Offload, [][]byte)
	plugs  chan struct{}
	frames chan []byte
}

func (n *network) Plug(send func(vm.Offload, [][]byte)) (func([]byte), func(), error) {
	n.send = send
	return func(f []byte) { n.frames <- bytes.Clone(f) }, func() { close(n.plugs) }, nil
}

// guest is a driver.
type guest struct {
	t        testing.TB
	fe       *vhosttest.FrontEnd
	net      *network
	rx, tx   *vhosttest.Ring
	features uint64

	bufs map[uint16]uint64 // receive buffers, by head
}

func startGuest(t testing.TB, features uint64) *guest {
	t.Helper()
	front, back := vhosttest.Pair(t)
	g := &guest{t: t, fe: vhosttest.New(t, front, 8<<20), features: vhosttest.FeatureVersion1 | features, bufs: map[uint16]uint64{},
		net: &network{plugs: make(chan struct{}), frames: make(chan []byte, 1000)}}
	d, served := New(g.net, slog.New(slog.DiscardHandler)), make(chan error, 1)
	go func() { served <- d.Serve(context.Background(), back) }()
	t.Cleanup(func() {
		g.fe.Close()
		select {
		case <-served:
			<-g.net.plugs
		case <-time.After(patience):
			t.Error("the device does not end")
		}
	})
	g.fe.Realize(0)
	g.rx, g.tx = g.fe.NewRing(0, ringSize), g.fe.NewRing(1, ringSize)
	g.fe.Start(g.features, g.rx, g.tx)
	return g
}

// refill offers n receive buffers.
func (g *guest) refill(n int) {
	for range n {
		at := g.fe.Alloc(rxBuffer)
		g.bufs[g.rx.Offer(vhosttest.Buffer{Off: at, Len: rxBuffer, Write: true})] = at
	}
	g.rx.Kick()
}

// take waits for one frame and returns it with its header.
func (g *guest) take() (head, frame []byte) {
	g.t.Helper()
	for left := 1; left > 0; left-- {
		if !g.rx.Wait(patience) {
			g.t.Fatal("no frame, or no call for it")
		}
		id, n, _ := g.rx.Take()
		b := g.fe.Memory()[g.bufs[id]:][:n]
		if head == nil {
			head, b = slices.Clone(b[:headerLen]), b[headerLen:]
			left = int(binary.LittleEndian.Uint16(head[10:]))
		}
		frame = append(frame, b...)
	}
	return head, frame
}

func (g *guest) transmit(head, frame []byte) {
	at := g.fe.Alloc(len(head) + len(frame))
	copy(g.fe.Memory()[at:], slices.Concat(head, frame))
	g.tx.Offer(vhosttest.Buffer{Off: at, Len: uint32(len(head))}, vhosttest.Buffer{Off: at + uint64(len(head)), Len: uint32(len(frame))})
	g.tx.Kick()
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

const offloads = featGuestChecksum | featGuestTSO4 | featMergeable | featChecksum | featHostTSO4

func TestFromGuest(t *testing.T) {
	for name, f := range map[string]uint64{"plain": 0, "linux": vhosttest.FeatureEventIdx | vhosttest.FeatureIndirect | offloads} {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, f)
			for _, n := range []int{14, 60, 1514, 65535 + 14} {
				g.transmit(make([]byte, headerLen), pattern(n))
				select {
				case got := <-g.net.frames:
					if !bytes.Equal(got, pattern(n)) {
						t.Errorf("a frame of %d bytes came as %d", n, len(got))
					}
				case <-time.After(patience):
					t.Fatalf("a frame of %d bytes did not come", n)
				}
			}
			// What is no frame is given back, and nothing comes of it.
			g.transmit(make([]byte, 5), nil)
			g.transmit(make([]byte, headerLen), pattern(maxFrame+1))
			g.transmit(make([]byte, headerLen), pattern(99))
			if got := <-g.net.frames; len(got) != 99 {
				t.Errorf("a frame of %d bytes after two impossible ones", len(got))
			}
		})
	}
}

func TestToGuest(t *testing.T) {
	g := startGuest(t, vhosttest.FeatureEventIdx|offloads)
	g.refill(ringSize)
	off := vm.Offload{Checksum: true, ChecksumStart: 34, ChecksumOffset: 16, Segment: 1448, Header: 66}
	sent := pattern(30000)
	g.net.send(off, [][]byte{sent[:66], sent[66:5000], sent[5000:]})
	head, got := g.take()
	if want := []byte{1, 1, 66, 0, 1448 & 255, 1448 >> 8, 34, 0, 16, 0, 21, 0}; !bytes.Equal(head, want) {
		t.Errorf("header % x, want % x", head, want)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes, or others", len(got))
	}
	g.net.send(vm.Offload{}, [][]byte{sent[:60]})
	if head, got := g.take(); !bytes.Equal(head, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}) || !bytes.Equal(got, sent[:60]) {
		t.Errorf("a small frame came with header % x and %d bytes", head, len(got))
	}
}

// TestWaits: frames without buffers wait for them, in order, up to a limit, and a
// reset forgets them.
func TestWaits(t *testing.T) {
	g := startGuest(t, vhosttest.FeatureEventIdx|offloads)
	g.refill(3)
	const frames = 20
	for i := range frames {
		g.net.send(vm.Offload{}, [][]byte{bytes.Repeat([]byte{byte(i)}, 4000)})
	}
	for i := range frames {
		g.refill(3)
		if _, got := g.take(); len(got) != 4000 || got[0] != byte(i) {
			t.Fatalf("frame %d came as %d bytes of %d", i, len(got), got[0])
		}
	}
	g.refill(1)
	for range 2 * maxWaiting / 60000 {
		g.net.send(vm.Offload{}, [][]byte{pattern(60000)})
	}
	g.fe.Stop(g.rx, g.tx)
	g.net.send(vm.Offload{}, [][]byte{pattern(60)}) // to nobody
	g.rx.Reset()
	g.tx.Reset()
	g.fe.Start(g.features, g.rx, g.tx)
	g.refill(2)
	g.net.send(vm.Offload{}, [][]byte{pattern(61)})
	if _, got := g.take(); len(got) != 61 {
		t.Errorf("the first frame after a reset has %d bytes", len(got))
	}
}

// TestPlainDriver: a driver without offloads gets nothing that it could not read.
func TestPlainDriver(t *testing.T) {
	g := startGuest(t, 0)
	g.refill(10)
	g.net.send(vm.Offload{Checksum: true}, [][]byte{pattern(100)})
	g.net.send(vm.Offload{}, [][]byte{pattern(2000)}) // more than a buffer
	g.net.send(vm.Offload{}, [][]byte{pattern(1000)})
	g.rx.Wait(patience)
	if _, n, _ := g.rx.Take(); n != 0 {
		t.Errorf("%d bytes of a frame without room", n)
	}
	if _, got := g.take(); len(got) != 1000 {
		t.Errorf("a frame of %d bytes", len(got))
	}
}

// TestBrokenRings: a broken ring does not stop the other, and a reset mends it.
func TestBrokenRings(t *testing.T) {
	for name, broken := range map[string]int{"receive": 0, "send": 1} {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, offloads)
			ring := []*vhosttest.Ring{g.rx, g.tx}[broken]
			ring.OfferHead(60000)
			ring.ForceKick()
			g.net.send(vm.Offload{}, [][]byte{pattern(100)})
			if broken == 0 {
				g.transmit(make([]byte, headerLen), pattern(99))
				if got := <-g.net.frames; len(got) != 99 {
					t.Errorf("%d bytes", len(got))
				}
			}
			g.fe.Stop(g.rx, g.tx)
			g.rx.Reset()
			g.tx.Reset()
			g.fe.Start(g.features, g.rx, g.tx)
			g.refill(2)
			g.net.send(vm.Offload{}, [][]byte{pattern(77)})
			if _, got := g.take(); len(got) != 77 {
				t.Errorf("after a reset: %d bytes", len(got))
			}
			g.transmit(make([]byte, headerLen), pattern(98))
			if got := <-g.net.frames; len(got) != 98 {
				t.Errorf("after a reset: %d bytes from the guest", len(got))
			}
		})
	}
}

// FuzzDevice lets a guest offer any descriptors in both rings.
func FuzzDevice(f *testing.F) {
	f.Add([]byte{0, 0, 12, 0, 0, 1, 1, 60, 0, 0}, uint64(offloads))
	f.Add([]byte{0, 3, 255, 255, 1, 0, 2, 0, 0, 0}, uint64(0))
	f.Fuzz(func(t *testing.T, program []byte, features uint64) {
		g := startGuest(t, features&offloads)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range g.net.frames {
			}
		}()
		for len(program) >= 5 {
			p := program[:5]
			program = program[5:]
			ring := []*vhosttest.Ring{g.rx, g.tx}[p[0]&1]
			i := uint16(p[1]) % ringSize
			ring.SetDesc(i, g.fe.GuestAddr(uint64(p[2])<<8), uint32(p[3])<<4, uint16(p[4]&7), uint16(p[4]>>3))
			ring.OfferHead(i)
			ring.ForceKick()
			g.net.send(vm.Offload{}, [][]byte{pattern(int(p[3]))})
		}
		g.fe.Stop(g.rx, g.tx)
		close(g.net.frames)
		<-done
	})
}
