//go:build linux && (amd64 || arm64)

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of /dev/kvm that every architecture has.
const (
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
)

// codeAddress is where the guest's memory begins, with its code.
const codeAddress = 0x1000

// exitInternalError is KVM_EXIT_INTERNAL_ERROR: KVM had to interpret an instruction
// and could not.
const exitInternalError = 17

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	Slot, Flags   uint32
	GuestPhysAddr uint64
	MemorySize    uint64
	UserspaceAddr uint64
}

// ioctl calls KVM; what names the call.
func ioctl(fd int, what string, request, arg uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
			continue
		}
		return 0, fmt.Errorf("%s: %w", what, errno)
	}
}

// runGuest makes the smallest guest there is and checks that it ends as its code
// says. Everything it opens stays open: its process ends next.
func runGuest() error {
	kvm, err := unix.Open(Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", Path, err)
	}
	vm, err := ioctl(kvm, "make a guest", kvmCreateVM, 0)
	if err != nil {
		return err
	}
	image := guest()
	page := uint64(os.Getpagesize())
	base := codeAddress &^ (page - 1) // pages may be larger than 4 KiB
	memory, err := unix.Mmap(-1, 0, int((codeAddress-base+uint64(len(image))+page-1)&^(page-1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	copy(memory[codeAddress-base:], image)
	region := memoryRegion{
		GuestPhysAddr: base,
		MemorySize:    uint64(len(memory)),
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(&memory[0]))),
	}
	if err := prepareVM(vm); err != nil {
		return err
	}
	if _, err := ioctl(vm, "give it memory", kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return err
	}
	cpu, err := ioctl(vm, "give it a CPU", kvmCreateVCPU, 0)
	if err != nil {
		return err
	}
	if err := prepareCPU(vm, cpu); err != nil {
		return err
	}
	size, err := ioctl(kvm, "size of the run area", kvmGetVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	area, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("run area: %w", err)
	}
	if _, err := ioctl(cpu, "run", kvmRun, 0); err != nil {
		return err
	}
	runtime.KeepAlive(memory)
	switch reason := binary.NativeEndian.Uint32(area[8:]); reason {
	case probeExit:
		return nil
	case exitInternalError:
		return errors.New("it interprets a guest's instructions, and does not know them all")
	default:
		return fmt.Errorf("a guest's first instructions ended with exit reason %d instead of %d", reason, probeExit)
	}
}
