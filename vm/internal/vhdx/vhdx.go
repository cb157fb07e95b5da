// Package vhdx makes and keeps the dynamic disk images that Hyper-V boots from,
// without any of Windows' tools, by [MS-VHDX] version 1. It reads no image while
// a machine uses it, and replays no log: an image whose log is not empty was not
// closed by its last user, and is left alone.
//
// An image made here has blocks of 1 MiB, so that what a guest discards comes
// back in small pieces, and this order:
//
//	0      identifier, two headers, two region tables
//	1 MiB  log, 1 MiB, empty
//	2 MiB  metadata, 1 MiB
//	3 MiB  block allocation table, whole MiB
//	       blocks
//
// Sizes and offsets are bytes. Every change is written so that a power cut
// between any two writes leaves an image with the same contents.
package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

const (
	mib       = 1 << 20
	blockSize = mib // of images made here

	logOffset      = 1 * mib
	metadataOffset = 2 * mib
	tableOffset    = 3 * mib

	headerSize   = 4 << 10
	regionSize   = 64 << 10
	metadataHead = 64 << 10

	// MaxSize is the format's limit.
	MaxSize = 64 << 40
)

// Where the copies of what is kept twice lie.
var (
	headerOffsets = [2]int64{64 << 10, 128 << 10}
	regionOffsets = [2]int64{192 << 10, 256 << 10}
)

// Errors a caller may match with errors.Is.
var (
	// ErrFormat says that a file is no image that this package understands.
	ErrFormat = errors.New("not a VHDX image that can be used")
	// ErrDirty says that an image was not closed by its last user, whose log has to
	// be replayed: attaching it does that.
	ErrDirty = errors.New("the VHDX image was not closed")
)

// guid is one as it lies in the file: the first three parts are little-endian.
type guid [16]byte

func parseGUID(s string) guid {
	var a uint32
	var b, c, d uint16
	var e uint64
	if _, err := fmt.Sscanf(s, "%08x-%04x-%04x-%04x-%012x", &a, &b, &c, &d, &e); err != nil {
		panic(err) // a constant of this package
	}
	var g guid
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], uint64(d)<<48|e)
	return g
}

// The format's names, [MS-VHDX] 2.2.3.2 and 2.6.2.
var (
	regionTable    = parseGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = parseGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

	itemParameters = parseGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemSize       = parseGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemID         = parseGUID("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogical    = parseGUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysical   = parseGUID("cda348c7-445d-4471-9cc9-e9885251c556")
)

// The states of a block's entry in the table, in its low three bits; the bits from
// the 20th on are its place in the file.
const (
	blockAbsent    = 0 // reads as zeros
	blockUndefined = 1
	blockZero      = 2
	blockUnmapped  = 3 // discarded by the guest
	blockPresent   = 6

	stateMask = 7
	placeMask = ^uint64(mib - 1)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal puts the checksum of b into its second word.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, castagnoli))
}

// sealed tells whether b's checksum is right. It leaves b as it was.
func sealed(b []byte) bool {
	sum := binary.LittleEndian.Uint32(b[4:])
	binary.LittleEndian.PutUint32(b[4:], 0)
	ok := sum == crc32.Checksum(b, castagnoli)
	binary.LittleEndian.PutUint32(b[4:], sum)
	return ok
}

// checkSize refuses what no disk can have.
func checkSize(size int64) error {
	if size <= 0 || size > MaxSize || size%4096 != 0 {
		return fmt.Errorf("a disk of %d bytes: the size must be a multiple of 4096, up to 64 TiB", size)
	}
	return nil
}

// entries is how many entries the table of a disk has: after every ratio blocks
// comes one of a sector bitmap, which a disk without a parent does not use.
func entries(size, block int64, ratio int64) int64 {
	blocks := (size + block - 1) / block
	return blocks + (blocks-1)/ratio
}

// ratio is how many blocks lie between two sector bitmaps.
func ratio(block, sector int64) int64 { return (1 << 23) * sector / block }

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// zeros reports whether b holds nothing else.
func zeros(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// writeAt writes and makes sure that it is on the disk.
func writeAt(f *os.File, b []byte, offset int64) error {
	if _, err := f.WriteAt(b, offset); err != nil {
		return err
	}
	return f.Sync()
}

// readFull reads what must be there.
func readFull(f io.ReaderAt, b []byte, offset int64) error {
	if n, err := f.ReadAt(b, offset); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}
