package boot

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPID returns si_pid of what waitid(2) filled in: on 64-bit machines it
// lies after three integers and padding. It is 0 when no child has ended.
func siginfoPID(info *unix.Siginfo) int32 {
	return *(*int32)(unsafe.Add(unsafe.Pointer(info), 16))
}
