package vhdx

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Image is an image that nobody else uses while it is open. Its methods are not
// safe for concurrent use.
type Image struct {
	f     *os.File
	size  int64 // of the file
	block int64
	ratio int64

	active   int    // which of the headers counts
	header   []byte // that header
	table    span
	metadata span
	log      span
	disk     int64 // the disk's size
	diskAt   int64 // where the metadata has it
	entries  []uint64
}

// span is a part of the file.
type span struct{ offset, size int64 }

func (s span) end() int64 { return s.offset + s.size }

// Open opens an image. The error wraps ErrFormat or ErrDirty, or is the file's.
// Images with parents are refused.
func Open(path string) (*Image, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	i := &Image{f: f}
	if err := i.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return i, nil
}

// Close closes the file.
func (i *Image) Close() error { return i.f.Close() }

// Size is the disk's.
func (i *Image) Size() int64 { return i.disk }

func (i *Image) read() error {
	info, err := i.f.Stat()
	if err != nil {
		return err
	}
	i.size = info.Size()
	magic := make([]byte, 8)
	if err := readFull(i.f, magic, 0); err != nil {
		return err
	}
	if string(magic) != "vhdxfile" {
		return ErrFormat
	}
	for _, step := range []func() error{i.readHeader, i.readRegions, i.readMetadata, i.readTable} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// readHeader finds the header that counts.
func (i *Image) readHeader() error {
	var best uint64
	for n, offset := range headerOffsets {
		b := make([]byte, headerSize)
		if err := readFull(i.f, b, offset); err != nil {
			return err
		}
		sequence := binary.LittleEndian.Uint64(b[8:])
		if string(b[:4]) == "head" && sealed(b) && (i.header == nil || sequence > best) {
			i.active, i.header, best = n, b, sequence
		}
	}
	if i.header == nil {
		return fmt.Errorf("%w: no header is whole", ErrFormat)
	}
	if version := binary.LittleEndian.Uint16(i.header[66:]); version != 1 {
		return fmt.Errorf("%w: version %d", ErrFormat, version)
	}
	if guid(i.header[48:64]) != (guid{}) {
		return ErrDirty
	}
	i.log = span{int64(binary.LittleEndian.Uint64(i.header[72:])), int64(binary.LittleEndian.Uint32(i.header[68:]))}
	return i.inside(i.log)
}

// inside refuses a part that does not lie in the file, in whole MiB.
func (i *Image) inside(s span) error {
	if s.offset < mib || s.size <= 0 || s.offset%mib != 0 || s.size%mib != 0 || s.offset > i.size || s.size > i.size-s.offset {
		return fmt.Errorf("%w: a region at %d of %d bytes", ErrFormat, s.offset, s.size)
	}
	return nil
}

func (i *Image) readRegions() error {
	var b []byte
	for _, offset := range regionOffsets {
		try := make([]byte, regionSize)
		if err := readFull(i.f, try, offset); err != nil {
			return err
		}
		if b == nil && string(try[:4]) == "regi" && sealed(try) {
			b = try
		}
	}
	if b == nil {
		return fmt.Errorf("%w: no region table is whole", ErrFormat)
	}
	count := binary.LittleEndian.Uint32(b[8:])
	if count > 2047 {
		return fmt.Errorf("%w: %d regions", ErrFormat, count)
	}
	for n := range count {
		e := b[16+32*n:]
		s := span{int64(binary.LittleEndian.Uint64(e[16:])), int64(binary.LittleEndian.Uint32(e[24:]))}
		if err := i.inside(s); err != nil {
			return err
		}
		switch guid(e[:16]) {
		case regionTable:
			i.table = s
		case regionMetadata:
			i.metadata = s
		default:
			return fmt.Errorf("%w: an unknown region", ErrFormat)
		}
	}
	if i.table.size == 0 || i.metadata.size == 0 {
		return fmt.Errorf("%w: a region is missing", ErrFormat)
	}
	parts := []span{i.log, i.table, i.metadata}
	slices.SortFunc(parts, func(a, b span) int { return int((a.offset - b.offset) / mib) })
	if parts[0].end() > parts[1].offset || parts[1].end() > parts[2].offset {
		return fmt.Errorf("%w: regions overlap", ErrFormat)
	}
	return nil
}

func (i *Image) readMetadata() error {
	head := make([]byte, metadataHead)
	if err := readFull(i.f, head, i.metadata.offset); err != nil {
		return err
	}
	count := int(binary.LittleEndian.Uint16(head[10:]))
	if string(head[:8]) != "metadata" || count > 2047 {
		return fmt.Errorf("%w: its metadata", ErrFormat)
	}
	var sector int64
	for n := range count {
		e := head[32+32*n:]
		offset, size := int64(binary.LittleEndian.Uint32(e[16:])), int64(binary.LittleEndian.Uint32(e[20:]))
		if size < 4 || size > mib || offset < metadataHead || offset > i.metadata.size-size {
			return fmt.Errorf("%w: an item of its metadata", ErrFormat)
		}
		value := make([]byte, max(size, 8))
		if err := readFull(i.f, value[:size], i.metadata.offset+offset); err != nil {
			return err
		}
		switch guid(e[:16]) {
		case itemParameters:
			i.block = int64(binary.LittleEndian.Uint32(value))
			if flags := binary.LittleEndian.Uint32(value[4:]); flags&2 != 0 {
				return fmt.Errorf("%w: it has a parent", ErrFormat)
			}
		case itemSize:
			i.disk, i.diskAt = int64(binary.LittleEndian.Uint64(value)), i.metadata.offset+offset
		case itemLogical:
			sector = int64(binary.LittleEndian.Uint32(value))
		case itemID, itemPhysical:
		default:
			if binary.LittleEndian.Uint32(e[24:])&4 != 0 {
				return fmt.Errorf("%w: an unknown item is required", ErrFormat)
			}
		}
	}
	if i.block < mib || i.block > 256*mib || i.block&(i.block-1) != 0 || sector != 512 && sector != 4096 || i.disk <= 0 || i.disk > MaxSize || i.disk%sector != 0 {
		return fmt.Errorf("%w: a disk of %d bytes in blocks of %d and sectors of %d", ErrFormat, i.disk, i.block, sector)
	}
	i.ratio = ratio(i.block, sector)
	return nil
}

// readTable reads the table and refuses blocks that overlap anything.
func (i *Image) readTable() error {
	count := entries(i.disk, i.block, i.ratio)
	if count*8 > i.table.size {
		return fmt.Errorf("%w: its table is too short", ErrFormat)
	}
	b := make([]byte, count*8)
	if err := readFull(i.f, b, i.table.offset); err != nil {
		return err
	}
	i.entries = make([]uint64, count)
	used := i.reserved()
	for n := range i.entries {
		e := binary.LittleEndian.Uint64(b[n*8:])
		i.entries[n] = e
		place, state := int64(e&placeMask), e&stateMask
		switch {
		case i.isBitmap(n) && state != blockAbsent:
			return fmt.Errorf("%w: it has a sector bitmap", ErrFormat)
		case state == blockPresent:
			if place > i.size-i.block || !used.take(place/mib, i.block/mib) {
				return fmt.Errorf("%w: block %d lies at %d", ErrFormat, n, place)
			}
		case state == 4, state == 5, state == 7:
			return fmt.Errorf("%w: block %d has the state %d", ErrFormat, n, state)
		}
	}
	return nil
}

func (i *Image) isBitmap(entry int) bool { return (int64(entry)+1)%(i.ratio+1) == 0 }

// units says which MiB of a file are in use.
type units []bool

// reserved are the units that hold no blocks.
func (i *Image) reserved() units {
	u := make(units, roundUp(i.size, mib)/mib)
	u.take(0, 1)
	for _, s := range []span{i.log, i.metadata, i.table} {
		u.take(s.offset/mib, s.size/mib)
	}
	return u
}

// take marks units, unless they are not there or one is taken.
func (u units) take(from, count int64) bool {
	if from < 0 || from+count > int64(len(u)) || slices.Contains(u[from:from+count], true) {
		return false
	}
	for n := from; n < from+count; n++ {
		u[n] = true
	}
	return true
}

// ReadAt implements io.ReaderAt on the disk.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		if at >= i.disk {
			return done, io.EOF
		}
		block := at / i.block
		within := at % i.block
		part := p[done:min(len(p), done+int(min(i.block-within, i.disk-at)))]
		e := i.entries[block+block/i.ratio]
		if e&stateMask != blockPresent {
			clear(part)
		} else if err := readFull(i.f, part, int64(e&placeMask)+within); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// touch says in the headers that the file is about to change, [MS-VHDX] 2.2.2.
func (i *Image) touch() error {
	b := slices.Clone(i.header)
	binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(b[8:])+1)
	g := newGUID()
	copy(b[16:32], g[:])
	seal(b)
	if err := writeAt(i.f, b, headerOffsets[1-i.active]); err != nil {
		return err
	}
	i.active, i.header = 1-i.active, b
	return nil
}

// Grow makes the disk larger. A disk never shrinks: a smaller size is an error.
func (i *Image) Grow(size int64) error {
	if size == i.disk {
		return nil
	}
	if size < i.disk {
		return fmt.Errorf("the disk has %d bytes and cannot shrink to %d", i.disk, size)
	}
	if err := checkSize(size); err != nil {
		return err
	}
	if err := i.touch(); err != nil {
		return err
	}
	count := entries(size, i.block, i.ratio)
	added := make([]byte, (count-int64(len(i.entries)))*8)
	if count*8 > i.table.size {
		if err := i.moveTable(roundUp(count*8, mib)); err != nil {
			return err
		}
	} else if len(added) > 0 {
		if err := writeAt(i.f, added, i.table.offset+int64(len(i.entries))*8); err != nil {
			return err
		}
	}
	if err := writeAt(i.f, binary.LittleEndian.AppendUint64(nil, uint64(size)), i.diskAt); err != nil {
		return err
	}
	i.entries = append(i.entries, make([]uint64, len(added)/8)...)
	i.disk = size
	return nil
}

// moveTable makes a larger one at the end of the file. Until both region tables
// name it, the old one is as good.
func (i *Image) moveTable(size int64) error {
	at := roundUp(i.size, mib)
	if err := i.f.Truncate(at + size); err != nil {
		return err
	}
	if err := writeAt(i.f, i.encode(), at); err != nil {
		return err
	}
	i.size = at + size
	i.table = span{at, size}
	for _, offset := range regionOffsets {
		b := make([]byte, regionSize)
		if err := readFull(i.f, b, offset); err != nil {
			return err
		}
		for n := range binary.LittleEndian.Uint32(b[8:]) {
			if e := b[16+32*n:]; guid(e[:16]) == regionTable {
				binary.LittleEndian.PutUint64(e[16:], uint64(at))
				binary.LittleEndian.PutUint32(e[24:], uint32(size))
			}
		}
		seal(b)
		if err := writeAt(i.f, b, offset); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) encode() []byte {
	b := make([]byte, 0, len(i.entries)*8)
	for _, e := range i.entries {
		b = binary.LittleEndian.AppendUint64(b, e)
	}
	return b
}

// Compact gives back the space of blocks that the guest has discarded, by moving
// the last blocks of the file into the holes. It returns by how many bytes the file
// has shrunk. When ctx ends it stops in a good state, with the holes it has not
// filled.
func (i *Image) Compact(ctx context.Context) (freed int64, err error) {
	before := i.size
	holes := int64(len(i.reserved()))*mib - i.inUse()
	if holes < i.block {
		return 0, nil
	}
	if err := i.touch(); err != nil {
		return 0, err
	}
	if err := i.forget(); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		moved, err := i.fill()
		if err != nil {
			return 0, err
		}
		if moved == 0 {
			break
		}
	}
	if end := i.end(); end < i.size {
		if err := errors.Join(i.f.Truncate(end), i.f.Sync()); err != nil {
			return 0, err
		}
		i.size = end
	}
	return before - i.size, ctx.Err()
}

// inUse is how many bytes of the file hold something.
func (i *Image) inUse() int64 {
	n := mib + i.log.size + i.metadata.size + i.table.size
	for _, e := range i.entries {
		if e&stateMask == blockPresent {
			n += i.block
		}
	}
	return n
}

// forget makes entries of discarded blocks name no place.
func (i *Image) forget() error {
	changed := false
	for n, e := range i.entries {
		if s := e & stateMask; (s == blockUndefined || s == blockUnmapped || s == blockZero) && e != blockZero {
			i.entries[n] = blockZero
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return writeAt(i.f, i.encode(), i.table.offset)
}

// end is where the last thing in the file ends.
func (i *Image) end() int64 {
	end := max(int64(mib), i.log.end(), i.metadata.end(), i.table.end())
	for _, e := range i.entries {
		if e&stateMask == blockPresent {
			end = max(end, int64(e&placeMask)+i.block)
		}
	}
	return end
}

// batch is how many blocks are copied before the table is written.
const batch = 64

// fill moves some of the last blocks into holes before them. Copies are on the
// disk before the table names them, and the places they left are not used before
// the table is on the disk.
func (i *Image) fill() (moved int, err error) {
	used := i.reserved()
	var present []int
	for n, e := range i.entries {
		if e&stateMask == blockPresent {
			used.take(int64(e&placeMask)/mib, i.block/mib)
			present = append(present, n)
		}
	}
	slices.SortFunc(present, func(a, b int) int { // the last first
		return int(int64(i.entries[b]&placeMask)/mib - int64(i.entries[a]&placeMask)/mib)
	})
	buf := make([]byte, i.block)
	hole := int64(0)
	for _, n := range present {
		from := int64(i.entries[n] & placeMask)
		hole = used.find(hole, i.block/mib, from/mib)
		if hole < 0 || moved == batch {
			break
		}
		if err := readFull(i.f, buf, from); err != nil {
			return 0, err
		}
		if _, err := i.f.WriteAt(buf, hole*mib); err != nil {
			return 0, err
		}
		used.take(hole, i.block/mib)
		i.entries[n] = uint64(hole*mib) | blockPresent
		moved++
	}
	if moved == 0 {
		return 0, nil
	}
	if err := i.f.Sync(); err != nil {
		return 0, err
	}
	return moved, writeAt(i.f, i.encode(), i.table.offset)
}

// find returns the first of count free units from start on that end before limit,
// or -1.
func (u units) find(start, count, limit int64) int64 {
	run := int64(0)
	for n := start; n < limit; n++ {
		if u[n] {
			run = 0
			continue
		}
		if run++; run == count {
			return n - count + 1
		}
	}
	return -1
}
