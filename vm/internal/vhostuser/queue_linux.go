package vhostuser

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Virtio's ring features, which the transport offers for every device.
const (
	featIndirect  = 1 << 28
	featEventIdx  = 1 << 29
	featProtocol  = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES, which is no virtio feature
	featVersion1  = 1 << 32
	ringFeatures  = featIndirect | featEventIdx | featVersion1
	maxQueueSize  = 1024
	usedNoNotify  = 1 // used.flags: the device wants no kicks
	availNoInterr = 1 // avail.flags: the driver wants no calls
)

// Queue is one virtqueue. Begin locks it, End unlocks it; the methods between
// are for the goroutine that holds it.
type Queue struct {
	index int
	log   *slog.Logger

	// Only the goroutine in Serve uses these.
	enabled  bool
	hasAddrs bool
	kickFD   int // noFD: the ring is not started

	// mu guards all below. Nothing else is ever locked while it is held.
	mu       sync.Mutex
	mem      *memory // nil until the first memory table
	running  bool
	broken   error  // why the queue died; nil after a new start
	era      uint64 // counts the drivers the queue has had
	num      uint16
	base     uint16 // where to start
	addrs    ringAddrs
	indirect bool
	eventIdx bool
	callFD   int
	errFD    int

	// The rings, as slices of guest memory, valid while running.
	desc, avail, used []byte

	lastAvail uint16 // the next head to take
	shadow    uint16 // avail.idx as last read and checked
	nextUsed  uint16 // used.idx, as it will be with the next flush
	flushed   uint16 // used.idx, as the driver sees it
	flags     uint16 // used.flags, as the driver sees it
	wantKicks bool
	batch     int // chains popped since Begin or EnableKicks
}

// fence is stored to for the barrier that comes with an atomic store.
var fence atomic.Uint32

// Index is the queue's number in its device.
func (q *Queue) Index() int { return q.index }

// Begin locks the queue. It returns false, and has not locked it, when the queue
// is stopped or broken.
func (q *Queue) Begin() bool {
	q.mu.Lock()
	if !q.running || q.broken != nil {
		q.mu.Unlock()
		return false
	}
	q.batch = 0
	return true
}

// End flushes and unlocks the queue.
func (q *Queue) End() {
	q.Flush()
	q.mu.Unlock()
}

// Pop takes the next chain the driver has offered into c, which it overwrites.
// It returns false when there is none, when as many were popped since Begin or
// EnableKicks as the queue has descriptors, so that a loop ends however fast the
// driver offers more, or when the ring is broken, which Err tells apart. Every
// popped chain has to be pushed.
func (q *Queue) Pop(c *Chain) bool {
	if q.broken != nil || q.batch >= int(q.num) || !q.pending() {
		return false
	}
	head := *(*uint16)(unsafe.Pointer(&q.avail[4+2*int(q.lastAvail&(q.num-1))]))
	if err := q.walk(c, head); err != nil {
		q.fail(err)
		return false
	}
	q.lastAvail++
	q.batch++
	return true
}

// Available reports whether Pop would find a chain.
func (q *Queue) Available() bool {
	return q.broken == nil && q.batch < int(q.num) && q.pending()
}

// pending looks at avail.idx once the chains seen before are used up.
func (q *Queue) pending() bool {
	if q.lastAvail != q.shadow {
		return true
	}
	// One load of flags and index; what the driver wrote before it stored the
	// index is visible after it.
	idx := uint16(atomic.LoadUint32(word(q.avail, 0)) >> 16)
	if delta := idx - q.lastAvail; delta > q.num {
		q.fail(fmt.Errorf("avail index jumped by %d in a queue of %d", delta, q.num))
		return false
	}
	q.shadow = idx
	return q.lastAvail != idx
}

// Push gives a chain back, n bytes of it having been written. The driver sees it
// with the next Flush or End.
func (q *Queue) Push(c *Chain, n uint32) {
	if c.era != q.era {
		return
	}
	off := 4 + 8*int(q.nextUsed&(q.num-1))
	*(*uint32)(unsafe.Pointer(&q.used[off])) = uint32(c.head)
	*(*uint32)(unsafe.Pointer(&q.used[off+4])) = n
	q.nextUsed++
}

// Flush shows the driver what was pushed and calls it if it wants to be called.
func (q *Queue) Flush() {
	old := q.flushed
	if q.nextUsed == old || q.broken != nil {
		return
	}
	q.flushed = q.nextUsed
	q.publish()
	if q.wantsCall(old) {
		signal(q.callFD)
	}
}

// publish stores used.flags and used.idx as the one aligned word they are. The
// store orders the used elements before it and the loads of wantsCall after it.
func (q *Queue) publish() {
	atomic.StoreUint32(word(q.used, 0), uint32(q.flags)|uint32(q.flushed)<<16)
}

func (q *Queue) wantsCall(old uint16) bool {
	if !q.eventIdx {
		return uint16(atomic.LoadUint32(word(q.avail, 0)))&availNoInterr == 0
	}
	// used_event is the last half-word of the avail ring.
	off := 4 + 2*int(q.num)
	event := uint16(atomic.LoadUint32(word(q.avail, off&^3)) >> (8 * (off & 2)))
	return q.flushed-event-1 < q.flushed-old
}

// EnableKicks asks the driver for a kick with the next chain it offers, and
// reports whether some are there already, in which case no kick may come: the
// caller goes on popping, better after an End and a Begin that let others at the
// queue.
func (q *Queue) EnableKicks() bool {
	q.wantKicks = true
	q.batch = 0
	if q.eventIdx {
		q.setAvailEvent()
	} else if q.flags != 0 {
		q.flags = 0
		q.publish()
	}
	q.shadow = q.lastAvail
	return q.pending() && q.broken == nil
}

// setAvailEvent names the chain that is worth a kick. Nothing aligns the index
// behind the ring to 32 bits of its own, so the barrier is apart from the store.
func (q *Queue) setAvailEvent() {
	*(*uint16)(unsafe.Pointer(&q.used[4+8*int(q.num)])) = q.lastAvail
	fence.Store(0)
}

// DisableKicks tells the driver that kicks are of no use for now. It is a hint.
func (q *Queue) DisableKicks() {
	if !q.wantKicks {
		return
	}
	q.wantKicks = false
	// With event indices, an avail_event that stays behind does the same.
	if !q.eventIdx && q.flags == 0 {
		q.flags = usedNoNotify
		q.publish()
	}
}

// Err says why the queue is broken, nil if it is not.
func (q *Queue) Err() error { return q.broken }

func (q *Queue) fail(err error) {
	if q.broken != nil {
		return
	}
	q.broken = fmt.Errorf("queue %d: %w", q.index, err)
	q.log.Warn("virtqueue broken by the guest: dead until the guest resets the device", "queue", q.index, "err", err)
	signal(q.errFD)
}

// start makes the queue run with what the front-end has said. It leaves
// whatever was there if it fails.
func (q *Queue) start(features uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.mapRings(); err != nil {
		return err
	}
	q.indirect = features&featIndirect != 0
	q.eventIdx = features&featEventIdx != 0
	q.lastAvail, q.shadow = q.base, q.base
	q.flushed = uint16(atomic.LoadUint32(word(q.used, 0)) >> 16)
	q.nextUsed = q.flushed
	q.flags = 0
	q.publish()
	q.wantKicks = true
	if q.eventIdx {
		q.setAvailEvent()
	}
	q.running = true
	return nil
}

// mapRings finds the rings in the memory. The lengths include the event index
// behind each ring, whether in use or not, as drivers reserve it.
func (q *Queue) mapRings() (err error) {
	n := uint64(q.num)
	if q.mem == nil {
		return errors.New("no memory table")
	}
	if q.desc, err = q.mem.ring(q.addrs.desc, descLen*n, 16); err != nil {
		return fmt.Errorf("descriptor table: %w", err)
	}
	// Virtio asks for 2 bytes only, but flags and index are read as one word.
	if q.avail, err = q.mem.ring(q.addrs.avail, (4+2*n+2+3)&^3, 4); err != nil {
		return fmt.Errorf("avail ring: %w", err)
	}
	if q.used, err = q.mem.ring(q.addrs.used, 4+8*n+2, 4); err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	return nil
}

// stop takes the queue out of use, waiting for the batch in hand, and returns
// what the front-end has to give back as base for the queue to go on.
func (q *Queue) stop() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running {
		q.running = false
		q.base = q.lastAvail
		q.desc, q.avail, q.used = nil, nil, nil
	}
	return q.base
}

// setMemory replaces the memory, waiting for the batch in hand. A running queue
// finds its rings anew.
func (q *Queue) setMemory(m *memory) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mem = m
	if !q.running {
		return nil
	}
	err := q.mapRings()
	if err != nil {
		q.fail(err)
	}
	return err
}

// newDriver makes the queue forget a driver and what it broke.
func (q *Queue) newDriver() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.era++
	q.broken = nil
}

func (q *Queue) runs() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running
}

// word is the aligned 32-bit word at an offset of a ring, which is mapped at a
// multiple of 4.
func word(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off : off+4][0])) }

// signal adds one to an eventfd. A full counter is as good as one more.
func signal(fd int) {
	if fd == noFD {
		return
	}
	one := [8]byte{1}
	for {
		if _, err := unix.Write(fd, one[:]); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
