package virtiofs

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

// TestBrokenRings: a ring that breaks the rules is dead until the guest resets
// the device, and the other one is not.
func TestBrokenRings(t *testing.T) {
	for name, breakIt := range map[string]func(g *guest, r *vhosttest.Ring){
		"loop": func(g *guest, r *vhosttest.Ring) {
			r.SetDesc(0, g.fe.GuestAddr(0), 100, 1, 0)
			r.OfferHead(0)
		},
		"head": func(_ *guest, r *vhosttest.Ring) { r.OfferHead(60000) },
		"address": func(_ *guest, r *vhosttest.Ring) {
			r.SetDesc(0, 0x7777_7777_7777, 100, 0, 0)
			r.OfferHead(0)
		},
		"length": func(g *guest, r *vhosttest.Ring) {
			r.SetDesc(0, g.fe.GuestAddr(0), ^uint32(0), 0, 0)
			r.OfferHead(0)
		},
		"order": func(g *guest, r *vhosttest.Ring) {
			r.SetDesc(0, g.fe.GuestAddr(0), 100, 3, 1)
			r.SetDesc(1, g.fe.GuestAddr(0), 100, 0, 0)
			r.OfferHead(0)
		},
		"index": func(_ *guest, r *vhosttest.Ring) { r.SetAvailIdx(30000) },
	} {
		t.Run(name, func(t *testing.T) {
			g := startGuest(t, 0)
			breakIt(g, g.rings[1])
			g.rings[1].ForceKick()
			time.Sleep(5 * time.Millisecond)
			g.offer(0, message(opEcho, 100, 1), 100)
			g.rings[0].ForceKick()
			if req, reply := g.take(0); !bytes.Equal(req, reply) {
				t.Error("the other queue does not answer")
			}
			g.reset()
			g.offer(1, message(opEcho, 100, 2), 100)
			g.rings[1].ForceKick()
			if req, reply := g.take(1); !bytes.Equal(req, reply) {
				t.Error("the queue does not answer after a reset")
			}
		})
	}
}

// TestEndlessOffers: a guest that offers refused requests without end does not
// hold up the transport.
func TestEndlessOffers(t *testing.T) {
	g := startGuest(t, 0)
	r := g.rings[1]
	r.SetDesc(0, g.fe.GuestAddr(0), 8, 0, 0)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		used := (*uint32)(unsafe.Pointer(&g.fe.Memory()[r.Used])) // flags and index
		idx := uint16(0)
		for !stop.Load() {
			if idx-uint16(atomic.LoadUint32(used)>>16) < ringSize {
				idx++
				r.SetAvailIdx(idx) // every entry of the ring is 0
			}
		}
	}()
	r.ForceKick()
	time.Sleep(20 * time.Millisecond)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		g.fe.Do(vhosttest.SetVringEnable, vhosttest.State(1, 0))
	}()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("the queue cannot be stopped")
	}
	stop.Store(true)
	<-done
}

// FuzzRing offers chains made of the fuzzer's bytes: each eight are a descriptor,
// with a place near the memory's ends, a length, and flags.
func FuzzRing(f *testing.F) {
	f.Add([]byte{0, 40, 0, 0, 0, 0, 0, 0, 0, 64, 0, 2, 0, 0, 0, 0})
	f.Add([]byte{0, 255, 255, 1, 1, 0, 0, 0, 0, 255, 255, 3, 0, 0, 0, 9})
	f.Add([]byte{1, 40, 0, 4, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := startGuest(t, vhosttest.FeatureIndirect)
		binary.LittleEndian.PutUint32(g.fe.Memory()[4:], opEcho)
		ring := 0
		for i := uint16(0); len(b) >= 8 && i < ringSize; b, i = b[8:], i+1 {
			off := uint64(b[0]) << 8
			if b[0]&1 != 0 {
				off = memory - off - 1
			}
			g.rings[ring].SetDesc(i, g.fe.GuestAddr(off), uint32(b[1])|uint32(b[2])<<8|uint32(b[7])<<24, uint16(b[3]), uint16(b[4]))
			if b[5]&1 == 0 {
				g.rings[ring].OfferHead(uint16(b[6]))
				g.rings[ring].ForceKick()
			}
			ring = int(b[5]>>1) & 1
		}
		g.reset()
		g.offer(1, message(opEcho, 100, 2), 100)
		g.rings[1].ForceKick()
		if req, reply := g.take(1); !bytes.Equal(req, reply) {
			t.Error("no answer after a reset")
		}
	})
}
