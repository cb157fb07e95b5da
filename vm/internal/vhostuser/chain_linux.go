package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

const (
	descLen      = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

var le = binary.LittleEndian

type segment struct {
	addr uint64
	len  uint32
}

// Chain is one buffer of the driver: descriptors the device reads, then
// descriptors it writes. It is filled by Queue.Pop and may be used again after
// Queue.Push; its methods are called between Begin and End of its queue, which
// need not be those around the Pop. Once the driver has been reset, a chain of
// the old driver is empty, and pushing it does nothing.
type Chain struct {
	queue *Queue
	era   uint64 // the queue's when the chain was popped
	head  uint16
	segs  []segment // readable ones first
	cut   int       // how many are readable
	in    cursor
	out   cursor
}

// cursor is a place in some of a chain's segments.
type cursor struct {
	seg  int
	off  uint32
	left uint64
}

// Readable is how many bytes are left to Read.
func (c *Chain) Readable() uint64 { return c.in.left }

// Writable is how many bytes are left to Write.
func (c *Chain) Writable() uint64 { return c.out.left }

// Read copies what the driver wrote, from where the last Read ended, and returns
// how much there was: less than len(p) only at the end.
func (c *Chain) Read(p []byte) int {
	return c.move(&c.in, p, func(p, guest []byte) int { return copy(p, guest) })
}

// Write copies p for the driver to read, behind the last Write, and returns how
// much of it had room.
func (c *Chain) Write(p []byte) int {
	return c.move(&c.out, p, func(p, guest []byte) int { return copy(guest, p) })
}

// move resolves addresses anew each time, as the memory table may have changed
// since the chain was popped.
func (c *Chain) move(cur *cursor, p []byte, do func(p, guest []byte) int) int {
	total := 0
	if c.era != c.queue.era {
		cur.left = 0
	}
	for len(p) > 0 && cur.left > 0 {
		s := c.segs[cur.seg]
		if cur.off == s.len {
			cur.seg, cur.off = cur.seg+1, 0
			continue
		}
		n := do(p, c.queue.mem.at(s.addr+uint64(cur.off), uint64(s.len-cur.off)))
		if n == 0 {
			c.queue.fail(errAddress)
			cur.left = 0
			break
		}
		p = p[n:]
		total += n
		cur.off += uint32(n)
		cur.left -= uint64(n)
	}
	return total
}

// walk fills c with the chain at head. Every descriptor is copied once.
func (q *Queue) walk(c *Chain, head uint16) error {
	*c = Chain{queue: q, era: q.era, head: head, segs: c.segs[:0]}
	var d descriptor
	for next, n := head, 0; ; n++ {
		if next >= q.num {
			return fmt.Errorf("descriptor %d in a queue of %d", next, q.num)
		}
		if n >= int(q.num) {
			return errors.New("descriptor chain is looped")
		}
		raw := (*[2]uint64)(unsafe.Pointer(&q.desc[descLen*int(next)]))
		d.decode(atomic.LoadUint64(&raw[0]), atomic.LoadUint64(&raw[1]))
		if d.flags&descIndirect != 0 {
			if !q.indirect || d.flags&descNext != 0 {
				return errors.New("indirect descriptor where none may be")
			}
			if err := q.walkIndirect(c, d, int(q.num)-n); err != nil {
				return err
			}
			break
		}
		if err := c.add(d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			break
		}
		next = d.next
	}
	c.out.seg = c.cut
	return nil
}

func (q *Queue) walkIndirect(c *Chain, table descriptor, most int) error {
	count := table.len / descLen
	if table.len%descLen != 0 || count == 0 || count > uint32(most) {
		return fmt.Errorf("indirect table of %d bytes where %d descriptors are left", table.len, most)
	}
	var d descriptor
	var raw [descLen]byte
	for next, n := uint32(0), uint32(0); ; n++ {
		if next >= count {
			return fmt.Errorf("descriptor %d in an indirect table of %d", next, count)
		}
		if n >= count {
			return errors.New("indirect descriptor chain is looped")
		}
		if err := q.mem.read(table.addr+uint64(next)*descLen, raw[:]); err != nil {
			return fmt.Errorf("indirect table: %w", err)
		}
		d.decode(le.Uint64(raw[:]), le.Uint64(raw[8:]))
		if d.flags&descIndirect != 0 {
			return errors.New("nested indirect descriptor")
		}
		if err := c.add(d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		next = uint32(d.next)
	}
}

// add appends a descriptor's buffer after checking its place.
func (c *Chain) add(d descriptor) error {
	if !c.queue.mem.check(d.addr, uint64(d.len)) {
		return fmt.Errorf("buffer of %d bytes: %w", d.len, errAddress)
	}
	side := &c.in
	if d.flags&descWrite != 0 {
		side = &c.out
	} else if len(c.segs) > c.cut {
		return errors.New("readable descriptor behind a writable one")
	}
	if d.len == 0 {
		return nil
	}
	c.segs = append(c.segs, segment{d.addr, d.len})
	if side == &c.in {
		c.cut++
	}
	side.left += uint64(d.len)
	return nil
}

type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// decode takes the descriptor as two words that were loaded once: what is
// checked is what is used.
func (d *descriptor) decode(lo, hi uint64) {
	d.addr, d.len, d.flags, d.next = lo, uint32(hi), uint16(hi>>32), uint16(hi>>48)
}
