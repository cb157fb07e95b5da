package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mke2fs' options: the disk is a sparse file, which reads as zeros, so nothing
// needs to be zeroed or discarded, now or later. There is no root to reserve
// blocks for.
var mke2fs = []string{
	"/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "berth-data", "-m", "0",
	"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1",
}

const dataFlags = unix.MS_NODEV | unix.MS_NOATIME

// mountData mounts the data disk, after making or mending its file system where
// that is needed.
func (m *machine) mountData() error {
	device, err := m.hw.findDisk(dataSerial, 5*time.Second)
	if err != nil {
		return err
	}
	sb, err := readSuperblock(device)
	switch {
	case errors.Is(err, errBlank):
		m.log.Info("formatting the data disk", "device", device)
		if err := m.command(append(mke2fs, device), 0); err != nil {
			return err
		}
		if sb, err = readSuperblock(device); err != nil {
			return err
		}
	case err != nil:
		return err
	case sb.dirty():
		m.log.Info("checking the data disk, which was not unmounted", "device", device)
		// 1 says that errors were corrected.
		if err := m.command([]string{"/sbin/e2fsck", "-p", device}, 1); err != nil {
			return fmt.Errorf("the data disk is damaged; its owner can try e2fsck -f on the disk file: %w", err)
		}
	}
	// Device files in images are container roots' business, which have a mount of
	// their own: overlayfs does not look at the lower mounts' flags.
	if err := (mount{device, dataDir, "ext4", dataFlags, "discard"}).do(); err != nil {
		return err
	}
	return growData(device, sb)
}

// command runs a program of the root and waits for it. Exit codes up to limit
// are successes.
func (m *machine) command(argv []string, limit int) error {
	var output bytes.Buffer
	status, err := m.reaper.run(argv, &output)
	if err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	if !status.Exited() || status.ExitStatus() > limit {
		text := strings.Join(strings.Fields(output.String()), " ")
		return fmt.Errorf("%s: status %d: %s", argv[0], status.ExitStatus(), text)
	}
	return nil
}

// superblock is what matters here of ext4's.
type superblock struct {
	blocks    uint64
	blockSize uint64
	state     uint16
	recover   bool // the journal has to be replayed
}

// dirty reports whether the file system was not unmounted or has errors.
func (s superblock) dirty() bool { return s.state != 1 || s.recover }

// errBlank says that a disk holds nothing at all.
var errBlank = errors.New("the disk is blank")

func readSuperblock(device string) (superblock, error) {
	file, err := os.Open(device)
	if err != nil {
		return superblock{}, err
	}
	defer file.Close()
	head := make([]byte, 64<<10)
	if _, err := io.ReadFull(file, head); err != nil {
		return superblock{}, fmt.Errorf("read %s: %w", device, err)
	}
	return parseSuperblock(head)
}

// parseSuperblock reads the first 64 KiB of a disk. A disk that is neither ext4
// nor blank belongs to somebody: it is refused.
func parseSuperblock(head []byte) (superblock, error) {
	if len(head) < 2048 {
		return superblock{}, io.ErrUnexpectedEOF
	}
	le, sb := binary.LittleEndian, head[1024:]
	if le.Uint16(sb[0x38:]) != 0xef53 {
		if len(bytes.Trim(head, "\x00")) == 0 {
			return superblock{}, errBlank
		}
		return superblock{}, errors.New("the data disk holds something that is not ext4; it was left as it is")
	}
	s := superblock{
		blocks:  uint64(le.Uint32(sb[0x4:])),
		state:   le.Uint16(sb[0x3a:]),
		recover: le.Uint32(sb[0x60:])&0x4 != 0,
	}
	logSize := le.Uint32(sb[0x18:])
	if logSize > 6 {
		return superblock{}, fmt.Errorf("the data disk's superblock is damaged: block size 2^%d", 10+logSize)
	}
	s.blockSize = 1024 << logSize
	if le.Uint32(sb[0x60:])&0x80 != 0 { // 64-bit
		s.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	return s, nil
}

// growData makes the mounted file system as large as its disk.
func growData(device string, sb superblock) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	blocks := uint64(size) / sb.blockSize
	if blocks <= sb.blocks {
		return nil
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	const resize = 0x40086610 // EXT4_IOC_RESIZE_FS
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resize, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow the data disk's file system to %d blocks: %w", blocks, errno)
	}
	return nil
}
