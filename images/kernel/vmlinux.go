// Package kernel takes apart a distribution's Linux kernel package: it
// extracts the plain ELF image from a bzImage, so that a machine can be booted
// by PVH without decompressing anything, and resolves, decompresses and slims
// modules, so that loading them is cheap.
//
// It only reads, and writes nothing; its values may be shared by goroutines.
package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Vmlinux returns the ELF image that an x86 bzImage carries compressed. The
// setup header says where it lies; only zstd, which Debian uses, is understood.
func Vmlinux(bzImage []byte) ([]byte, error) {
	if len(bzImage) < 0x264 || string(bzImage[0x202:0x206]) != "HdrS" {
		return nil, errors.New("kernel: not a bzImage")
	}
	sectors := int(bzImage[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	offset := int64(sectors+1)*512 + int64(binary.LittleEndian.Uint32(bzImage[0x248:]))
	length := int64(binary.LittleEndian.Uint32(bzImage[0x24c:]))
	if offset+length > int64(len(bzImage)) || length < 4 {
		return nil, errors.New("kernel: the bzImage is cut short")
	}
	payload := bzImage[offset : offset+length]
	// The build appends the decompressed size, which is no part of the stream.
	size := binary.LittleEndian.Uint32(payload[length-4:])
	if size > 1<<29 {
		return nil, fmt.Errorf("kernel: the bzImage claims to hold %d bytes", size)
	}
	dec, err := zstd.NewReader(bytes.NewReader(payload[:length-4]), zstd.WithDecoderMaxWindow(1<<30))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer dec.Close()
	image := make([]byte, 0, size)
	buf := bytes.NewBuffer(image)
	if _, err := io.Copy(buf, io.LimitReader(dec, int64(size))); err != nil {
		return nil, fmt.Errorf("kernel: decompress the bzImage's payload: %w", err)
	}
	if buf.Len() != int(size) {
		return nil, fmt.Errorf("kernel: the bzImage holds %d bytes, want %d", buf.Len(), size)
	}
	if _, err := elf.NewFile(bytes.NewReader(buf.Bytes())); err != nil {
		return nil, fmt.Errorf("kernel: the bzImage's payload: %w", err)
	}
	return buf.Bytes(), nil
}
