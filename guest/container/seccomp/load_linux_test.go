package seccomp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func load(f *Filter) error {
	prog := unix.SockFprog{Len: uint16(len(f.insns) / insnSize), Filter: (*unix.SockFilter)(unsafe.Pointer(&f.insns[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.flags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
