package vhosttest

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Buffer is one descriptor's worth of guest memory.
type Buffer struct {
	Off   uint64 // where in FrontEnd.Memory
	Len   uint32
	Write bool // the device writes it
}

// Ring is a split virtqueue as its driver sees it. One goroutine may offer and
// take at a time; another may wait.
type Ring struct {
	fe       *FrontEnd
	index    uint32
	num      uint16
	base     uint16
	eventIdx bool
	kick     int
	call     int
	interr   atomic.Pointer[eventFD]

	// Desc, Avail and Used are where in FrontEnd.Memory the rings are.
	Desc, Avail, Used uint64

	free     []uint16 // descriptors
	next     map[uint16]uint16
	availIdx uint16
	usedIdx  uint16
	kicked   uint16 // availIdx at the last look at avail_event
}

// NewRing makes a ring of num descriptors, a power of two.
func (f *FrontEnd) NewRing(index uint32, num uint16) *Ring {
	r := &Ring{fe: f, index: index, num: num, kick: newEventFD(f)}
	r.Desc = f.Alloc(16 * int(num))
	r.Avail = f.Alloc(4 + 2*int(num) + 2)
	r.Used = f.Alloc(4 + 8*int(num) + 2)
	r.RenewCall()
	r.Reset()
	return r
}

// Reset is what a driver does before it starts anew.
func (r *Ring) Reset() {
	clear(r.fe.mem[r.Desc:][:16*int(r.num)])
	clear(r.fe.mem[r.Avail:][:6+2*int(r.num)])
	clear(r.fe.mem[r.Used:][:6+8*int(r.num)])
	r.base, r.availIdx, r.usedIdx, r.kicked = 0, 0, 0, 0
	r.free, r.next = nil, make(map[uint16]uint16)
	for i := range r.num {
		r.free = append(r.free, i)
	}
}

// RenewCall makes another eventfd for the device's calls, for a ring that is not
// started; SwapCall is for one that is.
func (r *Ring) RenewCall() {
	r.call = newEventFD(r.fe)
	r.interr.Store(&eventFD{r.call})
}

// SwapCall replaces the eventfd of a live ring, as QEMU does. Whoever waits moves
// to the new one.
func (r *Ring) SwapCall() {
	old := r.interr.Load()
	r.RenewCall()
	r.fe.Do(SetVringCall, U64(uint64(r.index)), r.call)
	one := [8]byte{1}
	_, _ = unix.Write(old.fd, one[:])
}

func (r *Ring) addrs() []byte {
	b := State(r.index, 0)
	for _, off := range []uint64{r.Desc, r.Used, r.Avail} {
		b = le.AppendUint64(b, r.fe.UserAddr(off))
	}
	return le.AppendUint64(b, 0)
}

// Free is how many descriptors are left.
func (r *Ring) Free() int { return len(r.free) }

// Offer puts a chain into the ring and returns its head. The device sees it at
// once and hears of it with Kick. There must be enough free descriptors.
func (r *Ring) Offer(bufs ...Buffer) uint16 {
	head := r.free[0]
	for i, b := range bufs {
		d := r.free[0]
		r.free = r.free[1:]
		flags, next := uint16(0), uint16(0)
		if b.Write {
			flags |= 2
		}
		if i < len(bufs)-1 {
			flags |= 1
			next = r.free[0]
			r.next[d] = next
		}
		r.SetDesc(d, r.fe.GuestAddr(b.Off), b.Len, flags, next)
	}
	r.OfferHead(head)
	return head
}

// OfferIndirect puts a chain into the ring whose descriptors are in a table at
// the given place in memory.
func (r *Ring) OfferIndirect(table uint64, bufs ...Buffer) uint16 {
	for i, b := range bufs {
		flags := uint16(0)
		if b.Write {
			flags |= 2
		}
		if i < len(bufs)-1 {
			flags |= 1
		}
		putDesc(r.fe.mem[table+16*uint64(i):], r.fe.GuestAddr(b.Off), b.Len, flags, uint16(i+1))
	}
	head := r.free[0]
	r.free = r.free[1:]
	r.SetDesc(head, r.fe.GuestAddr(table), uint32(16*len(bufs)), 4, 0)
	r.OfferHead(head)
	return head
}

// SetDesc writes a descriptor as it is told to.
func (r *Ring) SetDesc(i uint16, addr uint64, n uint32, flags, next uint16) {
	putDesc(r.fe.mem[r.Desc+16*uint64(i):], addr, n, flags, next)
}

func putDesc(b []byte, addr uint64, n uint32, flags, next uint16) {
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], n)
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], next)
}

// OfferHead puts any number into the avail ring.
func (r *Ring) OfferHead(head uint16) {
	le.PutUint16(r.fe.mem[r.Avail+4+2*uint64(r.availIdx&(r.num-1)):], head)
	r.availIdx++
	r.SetAvailIdx(r.availIdx)
}

// SetAvailIdx stores an index as it is told to; flags stay 0.
func (r *Ring) SetAvailIdx(idx uint16) {
	atomic.StoreUint32(r.word(r.Avail), uint32(idx)<<16)
}

// Kick tells the device of what was offered, if it wants to know, and reports
// whether it did.
func (r *Ring) Kick() bool {
	old := r.kicked
	r.kicked = r.availIdx
	if r.eventIdx {
		event := uint16(atomic.LoadUint32(r.word(r.Used + 4 + 8*uint64(r.num))))
		if r.availIdx-event-1 >= r.availIdx-old {
			return false
		}
	} else if atomic.LoadUint32(r.word(r.Used))&1 != 0 {
		return false
	}
	r.ForceKick()
	return true
}

// ForceKick kicks whether the device wants it or not.
func (r *Ring) ForceKick() {
	one := [8]byte{1}
	_, _ = unix.Write(r.kick, one[:])
}

// Take returns the next chain the device has given back: its head, and how many
// bytes it says it has written.
func (r *Ring) Take() (head uint16, n uint32, ok bool) {
	if uint16(atomic.LoadUint32(r.word(r.Used))>>16) == r.usedIdx {
		return 0, 0, false
	}
	b := r.fe.mem[r.Used+4+8*uint64(r.usedIdx&(r.num-1)):]
	head, n = uint16(le.Uint32(b)), le.Uint32(b[4:])
	r.usedIdx++
	for d, more := head, true; more; {
		next, linked := r.next[d]
		delete(r.next, d)
		r.free = append(r.free, d)
		d, more = next, linked
	}
	return head, n, true
}

// Outstanding is how many chains the device has not given back.
func (r *Ring) Outstanding() int {
	return int(r.availIdx - uint16(atomic.LoadUint32(r.word(r.Used))>>16))
}

// Wait waits until Take has something to take, relying on the device's call
// alone, or until the time is over. It reports which.
func (r *Ring) Wait(timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		if r.eventIdx {
			off := r.Avail + 4 + 2*uint64(r.num)
			atomic.StoreUint32(r.word(off&^3), uint32(r.usedIdx)<<(8*(off&2)))
		}
		if uint16(atomic.LoadUint32(r.word(r.Used))>>16) != r.usedIdx {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 || !r.interr.Load().wait(left) {
			return false
		}
	}
}

func (r *Ring) word(off uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&r.fe.mem[off : off+4][0]))
}

type eventFD struct{ fd int }

func newEventFD(f *FrontEnd) int {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		f.tb.Fatal(err)
	}
	f.tb.Cleanup(func() { unix.Close(fd) })
	return fd
}

// wait waits for the counter to rise and clears it.
func (e *eventFD) wait(timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(timeout/time.Millisecond)+1)
	if err == unix.EINTR {
		return true
	}
	if n == 0 {
		return false
	}
	var b [8]byte
	_, _ = unix.Read(e.fd, b[:])
	return true
}
