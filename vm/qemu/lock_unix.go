//go:build unix

package qemu

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockDisk takes a lock that other programs of this kind respect.
func lockDisk(f *os.File, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	return unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
}
