package qemu

import (
	"os"

	"golang.org/x/sys/windows"
)

// lockDisk takes a lock that other programs of this kind respect. Locks are
// mandatory here, so it is on a byte far beyond what a disk may have: QEMU is
// another process.
func lockDisk(f *os.File, shared bool) error {
	flags := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if !shared {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	return windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{OffsetHigh: 1 << 30})
}
