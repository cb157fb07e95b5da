package vhostuser

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/vm/internal/vhostuser/vhosttest"
)

const version1 = vhosttest.FeatureVersion1

// TestMirror runs chains of all shapes around rings of all sizes, many times the
// ring's length.
func TestMirror(t *testing.T) {
	features := map[string]uint64{
		"plain": 0, "event": vhosttest.FeatureEventIdx, "indirect": vhosttest.FeatureIndirect,
		"both": vhosttest.FeatureEventIdx | vhosttest.FeatureIndirect,
	}
	for name, f := range features {
		for _, size := range []uint16{2, 4, 256, 1024} {
			t.Run(name, func(t *testing.T) {
				s := serve(t, 1<<20)
				s.Realize(8)
				ring := s.NewRing(0, size)
				in, out, table := s.Alloc(3000), s.Alloc(3000), s.Alloc(64)
				s.Start(version1|f, ring)
				mem := s.Memory()
				for i := range 3 * int(size) {
					n := 1 + rand.IntN(2999)
					for j := range n {
						mem[in+uint64(j)], mem[out+uint64(j)] = byte(i+j), 0
					}
					cut := uint32(rand.IntN(n + 1))
					bufs := []vhosttest.Buffer{{Off: in, Len: uint32(n)}, {Off: out, Len: uint32(n), Write: true}}
					if size > 2 {
						bufs = []vhosttest.Buffer{
							{Off: in, Len: cut}, {Off: in + uint64(cut), Len: uint32(n) - cut},
							{Off: out, Len: cut, Write: true}, {Off: out + uint64(cut), Len: uint32(n) - cut, Write: true},
						}
					}
					if i%2 == 0 && f&vhosttest.FeatureIndirect != 0 {
						ring.OfferIndirect(table, bufs...)
					} else {
						ring.Offer(bufs...)
					}
					ring.Kick()
					if !ring.Wait(5 * time.Second) {
						t.Fatalf("chain %d does not come back", i)
					}
					if _, got, _ := ring.Take(); int(got) != n || !bytes.Equal(mem[in:in+uint64(n)], mem[out:out+uint64(n)]) {
						t.Fatalf("chain %d: %d of %d bytes, or others", i, got, n)
					}
				}
			})
		}
	}
}

// TestSuppression: neither side is bothered for each chain when there are many.
func TestSuppression(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 128)
	buf := s.Alloc(16)
	s.Start(version1|vhosttest.FeatureEventIdx, ring)
	kicks := 0
	for range 1000 {
		for ring.Free() > 0 {
			ring.Offer(vhosttest.Buffer{Off: buf, Len: 16})
			if ring.Kick() {
				kicks++
			}
		}
		ring.Wait(5 * time.Second)
		for ok := true; ok; {
			_, _, ok = ring.Take()
		}
	}
	if kicks > 20_000 {
		t.Errorf("%d kicks", kicks)
	}
}

// raw is one descriptor as a hostile driver writes it.
type raw struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

// TestHostileChains: each breaks the queue with the error that names it, and the
// next driver finds a queue that works.
func TestHostileChains(t *testing.T) {
	const size = 8
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, size)
	buf, table := s.Alloc(4096), s.Alloc(16*64)
	at, tab := s.GuestAddr(buf), s.GuestAddr(table)
	end := s.GuestAddr(uint64(len(s.Memory())-1)) + 1
	tests := []struct {
		name  string
		descs []raw // from 0
		table []raw // at tab
		head  uint16
		want  string // "" for a chain that is good
	}{
		{"good", []raw{{at, 8, 0, 0}}, nil, 0, ""},
		{"empty", []raw{{at, 0, 0, 0}}, nil, 0, ""},
		{"last bytes of memory", []raw{{end - 8, 8, 0, 0}}, nil, 0, ""},
		{"head out of range", nil, nil, size, "descriptor 8 in a queue of 8"},
		{"next out of range", []raw{{at, 8, 1, 99}}, nil, 0, "descriptor 99 in a queue of 8"},
		{"loop", []raw{{at, 8, 1, 1}, {at, 8, 1, 0}}, nil, 0, "looped"},
		{"loop to itself", []raw{{at, 8, 1, 0}}, nil, 0, "looped"},
		{"over the end", []raw{{end - 8, 9, 0, 0}}, nil, 0, "outside"},
		{"behind the end", []raw{{end, 1, 0, 0}}, nil, 0, "outside"},
		{"nowhere", []raw{{0, 1, 0, 0}}, nil, 0, "outside"},
		{"wraps around", []raw{{1<<64 - 8, 16, 0, 0}}, nil, 0, "outside"},
		{"front-end's address", []raw{{s.UserAddr(buf), 8, 0, 0}}, nil, 0, "outside"},
		{"readable behind writable", []raw{{at, 8, 3, 1}, {at, 8, 0, 0}}, nil, 0, "behind a writable"},
		{"indirect, good", []raw{{tab, 32, 4, 0}}, []raw{{at, 8, 1, 1}, {at, 8, 2, 0}}, 0, ""},
		{"indirect and next", []raw{{tab, 16, 5, 1}}, nil, 0, "where none may be"},
		{"indirect, no table", []raw{{tab, 0, 4, 0}}, nil, 0, "indirect table of 0 bytes"},
		{"indirect, odd length", []raw{{tab, 17, 4, 0}}, nil, 0, "indirect table of 17 bytes"},
		{"indirect, too long", []raw{{tab, 16 * (size + 1), 4, 0}}, nil, 0, "indirect table of 144 bytes"},
		{"indirect, too long with what is before", []raw{{at, 8, 1, 1}, {tab, 16 * size, 4, 0}}, nil, 0, "indirect table of 128 bytes"},
		{"indirect, huge", []raw{{tab, 1<<32 - 16, 4, 0}}, nil, 0, "indirect table"},
		{"indirect, table nowhere", []raw{{1, 16, 4, 0}}, nil, 0, "indirect table: address outside"},
		{"indirect, table wraps around", []raw{{1<<64 - 16, 32, 4, 0}}, nil, 0, "indirect table: address outside"},
		{"indirect, nested", []raw{{tab, 16, 4, 0}}, []raw{{tab, 16, 4, 0}}, 0, "nested"},
		{"indirect, loop", []raw{{tab, 32, 4, 0}}, []raw{{at, 8, 1, 1}, {at, 8, 1, 0}}, 0, "looped"},
		{"indirect, next out of range", []raw{{tab, 16, 4, 0}}, []raw{{at, 8, 1, 1}}, 0, "descriptor 1 in an indirect table of 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ring.Reset()
			s.dev.mu.Lock()
			s.dev.err = nil
			s.dev.mu.Unlock()
			s.Start(version1|vhosttest.FeatureIndirect, ring)
			for i, d := range test.descs {
				ring.SetDesc(uint16(i), d.addr, d.len, d.flags, d.next)
			}
			for i, d := range test.table {
				b := s.Memory()[table+16*uint64(i):]
				le.PutUint64(b, d.addr)
				le.PutUint32(b[8:], d.len)
				le.PutUint16(b[12:], d.flags)
				le.PutUint16(b[14:], d.next)
			}
			ring.OfferHead(test.head)
			ring.ForceKick()
			if test.want == "" {
				if !ring.Wait(5 * time.Second) {
					t.Error("the chain does not come back")
				}
			}
			err := s.broken(test.want != "")
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			s.Stop(ring)
		})
	}
}

// broken returns why the queue broke, waiting for it if it has to.
func (s *session) broken(wait bool) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.dev.mu.Lock()
		err := s.dev.err
		s.dev.mu.Unlock()
		if err != nil || !wait || time.Now().After(deadline) {
			return err
		}
	}
}

func TestIndirectNotAccepted(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 8)
	buf, table := s.Alloc(16), s.Alloc(16)
	s.Start(version1, ring)
	ring.OfferIndirect(table, vhosttest.Buffer{Off: buf, Len: 16})
	ring.Kick()
	if err := s.broken(true); err == nil || !strings.Contains(err.Error(), "where none may be") {
		t.Errorf("got %v", err)
	}
}

func TestAvailIndexJump(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 8)
	s.Start(version1, ring)
	ring.SetAvailIdx(9)
	ring.ForceKick()
	if err := s.broken(true); err == nil || !strings.Contains(err.Error(), "jumped by 9") {
		t.Errorf("got %v", err)
	}
	// Broken stays broken over a pause, with nothing taken from the ring.
	s.Stop(ring)
	s.Start(version1, ring)
	ring.ForceKick()
	time.Sleep(20 * time.Millisecond)
	if n := ring.Outstanding(); n != 0 {
		t.Errorf("%d outstanding", n)
	}
}

// TestPauseKeepsChains: chains that the device holds over a pause can be given
// back after it, and those it holds over a reset can not.
func TestPauseKeepsChains(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 8)
	in, out := s.Alloc(16), s.Alloc(16)
	copy(s.Memory()[in:], "sixteen bytes...")
	hold := func() *Chain {
		s.dev.mu.Lock()
		s.dev.hold, s.dev.held = true, nil
		s.dev.mu.Unlock()
		ring.Offer(vhosttest.Buffer{Off: in, Len: 16}, vhosttest.Buffer{Off: out, Len: 16, Write: true})
		ring.ForceKick()
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			s.dev.mu.Lock()
			held := s.dev.held
			s.dev.mu.Unlock()
			if len(held) > 0 {
				return held[0]
			}
		}
		t.Fatal("the device has no chain")
		return nil
	}
	give := func(c *Chain) int {
		if !s.dev.q.Begin() {
			t.Fatal("queue does not run")
		}
		defer s.dev.q.End()
		n := c.Write([]byte("answer"))
		s.dev.q.Push(c, uint32(n))
		return n
	}
	s.Start(version1, ring)
	c := hold()
	s.Stop(ring)
	if s.dev.q.Begin() {
		t.Fatal("a stopped queue can be used")
	}
	s.Start(version1, ring)
	if n := give(c); n != 6 || !ring.Wait(time.Second) {
		t.Errorf("after a pause: %d bytes", n)
	}
	ring.Take()
	c = hold()
	s.Stop(ring)
	ring.Reset()
	copy(s.Memory()[out:], "the new driver's")
	s.Start(version1, ring)
	if n := give(c); n != 0 || ring.Wait(20*time.Millisecond) {
		t.Errorf("after a reset: %d bytes", n)
	}
	if string(s.Memory()[out:out+16]) != "the new driver's" {
		t.Error("an old chain was written to")
	}
	if got, want := strings.Join(s.dev.said(), " "), "fresh stop resumed stop fresh"; got != want {
		t.Errorf("the device heard %q, want %q", got, want)
	}
}

// FuzzRing lays the input over the descriptor table, an indirect table and the
// avail ring, kicks, and expects no more than that the process lives, in batches
// that end, while another processor scribbles.
func FuzzRing(f *testing.F) {
	const size = 16
	s := serve(f, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, size)
	table, buf := s.Alloc(16*size), s.Alloc(4096)
	var good []byte
	for i := range 2 * size {
		good = le.AppendUint64(good, s.GuestAddr(buf))
		good = le.AppendUint32(good, 64)
		good = le.AppendUint16(good, uint16(i%8))
		good = le.AppendUint16(good, uint16(i+1)%size)
	}
	for i := range size {
		good = le.AppendUint16(good, uint16(i))
	}
	f.Add(append(slices.Clone(good), 3, 0))
	le.PutUint64(good, s.GuestAddr(table))
	le.PutUint32(good[8:], 64)
	le.PutUint16(good[12:], 4)
	f.Add(append(slices.Clone(good), size, 0))
	var stop atomic.Bool
	var scribbler = make(chan struct{})
	go func() {
		defer close(scribbler)
		for mem := s.Memory(); !stop.Load(); time.Sleep(10 * time.Microsecond) {
			off := ring.Desc + uint64(rand.IntN(16*size))
			if rand.IntN(2) == 0 {
				off = table + uint64(rand.IntN(16*size))
			}
			mem[off] = byte(rand.IntN(256))
		}
	}()
	f.Cleanup(func() { stop.Store(true); <-scribbler })
	f.Fuzz(func(t *testing.T, b []byte) {
		s.Use(t)
		ring.Reset()
		mem := s.Memory()
		copy(mem[ring.Desc:ring.Desc+16*size], b)
		b = b[min(len(b), 16*size):]
		copy(mem[table:table+16*size], b)
		b = b[min(len(b), 16*size):]
		copy(mem[ring.Avail+4:ring.Avail+4+2*size], b)
		b = b[min(len(b), 2*size):]
		s.Start(version1|vhosttest.FeatureIndirect|vhosttest.FeatureEventIdx, ring)
		idx := uint16(size)
		if len(b) >= 2 {
			idx = binary.LittleEndian.Uint16(b)
		}
		ring.SetAvailIdx(idx)
		ring.ForceKick()
		s.Stop(ring)
		s.dev.mu.Lock()
		defer s.dev.mu.Unlock()
		if s.dev.most > size {
			t.Errorf("%d chains in one batch of a queue of %d", s.dev.most, size)
		}
	})
}

// TestNoLostKick: a chain that comes while the device wants no kicks is found
// when it wants them again, because no kick will come for it.
func TestNoLostKick(t *testing.T) {
	for name, features := range map[string]uint64{"flags": 0, "event": vhosttest.FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, 1<<20)
			s.Realize(8)
			ring := s.NewRing(0, 8)
			buf := s.Alloc(16)
			s.Start(version1|features, ring)
			ring.Offer(vhosttest.Buffer{Off: buf, Len: 16})
			ring.Kick()
			if !ring.Wait(5 * time.Second) {
				t.Fatal("the queue does not work")
			}
			ring.Take()
			time.Sleep(10 * time.Millisecond) // for the device to have gone to sleep
			q := s.dev.q
			if !q.Begin() {
				t.Fatal("the queue does not run")
			}
			defer q.End()
			if q.EnableKicks() {
				t.Error("a chain in an empty ring")
			}
			q.DisableKicks()
			ring.Offer(vhosttest.Buffer{Off: buf, Len: 16})
			if !q.EnableKicks() {
				t.Error("the chain is not seen")
			}
		})
	}
}

// TestBatch: a batch ends although the driver offers more, and EnableKicks says
// so and lets it go on.
func TestBatch(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 4)
	buf := s.Alloc(16)
	s.Start(version1, ring)
	time.Sleep(10 * time.Millisecond) // for the device to have gone to sleep
	q := s.dev.q
	if !q.Begin() {
		t.Fatal("the queue does not run")
	}
	defer q.End()
	var c Chain
	popped := 0
	for ; popped < 100; popped++ {
		ring.Offer(vhosttest.Buffer{Off: buf, Len: 16})
		if !q.Pop(&c) {
			break
		}
		q.Push(&c, 0)
		q.Flush()
		ring.Take()
	}
	if popped != 4 {
		t.Errorf("%d chains in a batch of a queue of 4", popped)
	}
	if q.Available() {
		t.Error("Available promises what Pop will not do")
	}
	if !q.EnableKicks() || !q.Available() || !q.Pop(&c) {
		t.Error("the rest is not to be had")
	}
}

// TestSwappedCall: a call may have gone to the old eventfd while QEMU had
// already stopped looking at it, so the new one starts with a call.
func TestSwappedCall(t *testing.T) {
	s := serve(t, 1<<20)
	s.Realize(8)
	ring := s.NewRing(0, 8)
	call := eventfd(t)
	s.Do(vhosttest.SetVringCall, vhosttest.U64(0), call)
	var b [8]byte
	if _, err := unix.Read(call, b[:]); err != unix.EAGAIN {
		t.Errorf("call of a queue that does not run: %v", err)
	}
	s.Start(version1, ring)
	s.Do(vhosttest.SetVringCall, vhosttest.U64(0), call)
	if _, err := unix.Read(call, b[:]); err != nil {
		t.Errorf("no call: %v", err)
	}
}
