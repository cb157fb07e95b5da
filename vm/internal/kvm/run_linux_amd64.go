package kvm

import (
	"encoding/binary"
	"unsafe"
)

const (
	kvmSetTSSAddr = 0xae47
	kvmGetSregs   = 0x8138ae83
	kvmSetSregs   = 0x4138ae84
	kvmSetRegs    = 0x4090ae82

	probeExit = 5 // KVM_EXIT_HLT
)

// Code is the guest: "hlt", in real mode.
var Code = []byte{0xf4}

// prepareVM names pages that old Intel processors need for real mode.
func prepareVM(vm int) error {
	_, err := ioctl(vm, "give it a task state", kvmSetTSSAddr, 0xfffbd000)
	return err
}

// prepareCPU points the CPU at the code: CS:IP = 0:codeAddress.
func prepareCPU(_, cpu int) error {
	var sregs [312]byte // struct kvm_sregs begins with CS: base, limit, selector
	if _, err := ioctl(cpu, "read its registers", kvmGetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	binary.NativeEndian.PutUint64(sregs[0:], 0)
	binary.NativeEndian.PutUint16(sregs[12:], 0)
	if _, err := ioctl(cpu, "set its segments", kvmSetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	var regs [18]uint64 // struct kvm_regs ends with RIP and RFLAGS
	regs[16], regs[17] = codeAddress, 2
	_, err := ioctl(cpu, "set its registers", kvmSetRegs, uintptr(unsafe.Pointer(&regs)))
	return err
}
