package vhdx

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unicode/utf16"
)

// Create makes an image at path, which must not exist, of a disk of size bytes
// that reads as zeros. It takes a few MiB.
func Create(path string, size int64) error {
	return Convert(path, nil, size)
}

// Convert makes an image at path, which must not exist, of a disk of at least size
// bytes: those of raw, then zeros. Blocks of zeros take no space. A nil raw has
// none but those. When it fails nothing is left.
func Convert(path string, raw io.Reader, size int64) (err error) {
	size = roundUp(size, 4096)
	if err := checkSize(size); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	err = write(f, raw, size)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot make the disk image %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

func write(f *os.File, raw io.Reader, size int64) error {
	count := entries(size, blockSize, ratio(blockSize, 512))
	tableSize := roundUp(count*8, mib)
	table, end, err := writeBlocks(f, raw, size, tableOffset+tableSize, make([]byte, tableSize))
	if err != nil {
		return err
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	parts := []struct {
		offset int64
		data   []byte
	}{
		{0, identifier()},
		{headerOffsets[0], header(0, newGUID(), newGUID())},
		{headerOffsets[1], header(1, newGUID(), newGUID())},
		{regionOffsets[0], regions(tableOffset, tableSize)},
		{regionOffsets[1], regions(tableOffset, tableSize)},
		{metadataOffset, metadata(size)},
		{tableOffset, table},
	}
	for _, p := range parts {
		if _, err := f.WriteAt(p.data, p.offset); err != nil {
			return err
		}
	}
	return f.Sync()
}

// writeBlocks copies raw's blocks to the file from offset at on, and fills in the
// table. It returns where the file ends.
func writeBlocks(f *os.File, raw io.Reader, size, at int64, table []byte) ([]byte, int64, error) {
	if raw == nil {
		return table, at, nil
	}
	raw = io.LimitReader(raw, size)
	perChunk := ratio(blockSize, 512)
	buf := make([]byte, blockSize)
	for block := int64(0); ; block++ {
		n, err := io.ReadFull(raw, buf)
		if err == io.EOF {
			return table, at, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return nil, 0, err
		}
		clear(buf[n:])
		if zeros(buf[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf, at); err != nil {
			return nil, 0, err
		}
		binary.LittleEndian.PutUint64(table[(block+block/perChunk)*8:], uint64(at)|blockPresent)
		at += blockSize
	}
}

func newGUID() (g guid) {
	rand.Read(g[:])
	g[7] = g[7]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g
}

func identifier() []byte {
	b := make([]byte, 64<<10)
	copy(b, "vhdxfile")
	for i, c := range utf16.Encode([]rune("Berth")) {
		binary.LittleEndian.PutUint16(b[8+2*i:], c)
	}
	return b
}

// header is one of the two; the one with the higher sequence number counts. Its
// log is empty: the log's GUID is zero.
func header(sequence uint64, fileWrite, dataWrite guid) []byte {
	b := make([]byte, headerSize)
	copy(b, "head")
	binary.LittleEndian.PutUint64(b[8:], sequence)
	copy(b[16:], fileWrite[:])
	copy(b[32:], dataWrite[:])
	binary.LittleEndian.PutUint16(b[66:], 1) // version
	binary.LittleEndian.PutUint32(b[68:], mib)
	binary.LittleEndian.PutUint64(b[72:], logOffset)
	seal(b)
	return b
}

// regions says where the table and the metadata are.
func regions(table, tableSize int64) []byte {
	b := make([]byte, regionSize)
	copy(b, "regi")
	binary.LittleEndian.PutUint32(b[8:], 2)
	for i, r := range []struct {
		name         guid
		offset, size int64
	}{{regionTable, table, tableSize}, {regionMetadata, metadataOffset, mib}} {
		e := b[16+32*i:]
		copy(e, r.name[:])
		binary.LittleEndian.PutUint64(e[16:], uint64(r.offset))
		binary.LittleEndian.PutUint32(e[24:], uint32(r.size))
		binary.LittleEndian.PutUint32(e[28:], 1) // required
	}
	seal(b)
	return b
}

// metadata describes the disk.
func metadata(size int64) []byte {
	const virtualDisk, required = 2, 4
	id := newGUID()
	items := []struct {
		name  guid
		flags uint32
		value []byte
	}{
		{itemParameters, required, binary.LittleEndian.AppendUint64(nil, blockSize)}, // and no flags
		{itemSize, virtualDisk | required, binary.LittleEndian.AppendUint64(nil, uint64(size))},
		{itemID, virtualDisk | required, id[:]},
		{itemLogical, virtualDisk | required, binary.LittleEndian.AppendUint32(nil, 512)},
		{itemPhysical, virtualDisk | required, binary.LittleEndian.AppendUint32(nil, 4096)},
	}
	b := make([]byte, mib)
	copy(b, "metadata")
	binary.LittleEndian.PutUint16(b[10:], uint16(len(items)))
	at := metadataHead
	for i, item := range items {
		e := b[32+32*i:]
		copy(e, item.name[:])
		binary.LittleEndian.PutUint32(e[16:], uint32(at))
		binary.LittleEndian.PutUint32(e[20:], uint32(len(item.value)))
		binary.LittleEndian.PutUint32(e[24:], item.flags)
		at += copy(b[at:], item.value)
	}
	return b
}
