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

	// loops is how often the guest goes round: some milliseconds' work for a
	// processor, and seconds' for a KVM that interprets each instruction.
	loops = 4_000_000
)

// What the guest's memory holds behind its code, a page each: see Intel's manual,
// volume 3, section 4.5.
const (
	level4Address = codeAddress + 0x1000*(iota+1)
	level3Address
	level2Address
	dataAddress
	endAddress
)

// guest returns the guest, which is in 64-bit mode at the highest privilege, as a
// kernel is: it goes round a loop, compares and swaps 16 bytes, which kernels
// do and not every interpreter can, and halts.
func guest() []byte {
	image := make([]byte, endAddress-codeAddress)
	code := []byte{0xb9, 0, 0, 0, 0} // mov ecx, loops
	binary.LittleEndian.PutUint32(code[1:], loops)
	copy(image, append(code,
		0xff, 0xc9, // dec ecx
		0x75, 0xfc, // jnz to the dec
		0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
		0xf4, // hlt
	))
	const present, writable, large = 1 << 0, 1 << 1, 1 << 7
	entry := func(table, value uint64) { binary.LittleEndian.PutUint64(image[table-codeAddress:], value) }
	entry(level4Address, level3Address|present|writable)
	entry(level3Address, level2Address|present|writable)
	entry(level2Address, present|writable|large) // the first 2 MiB as they are
	return image
}

// prepareVM names the pages that KVM asks for on Intel's processors, although this
// guest is never in real mode: see KVM_SET_TSS_ADDR in the kernel's virt/kvm/api.rst.
func prepareVM(vm int) error {
	_, err := ioctl(vm, "give it a task state", kvmSetTSSAddr, 0xfffbd000)
	return err
}

// segment is struct kvm_segment.
type segment struct {
	Base                                              uint64
	Limit                                             uint32
	Selector                                          uint16
	Type, Present, DPL, DB, S, L, G, AVL, Unusable, _ uint8
}

// specialRegisters is struct kvm_sregs.
type specialRegisters struct {
	CS, DS, ES, FS, GS, SS, TR, LDT     segment
	GDT, IDT                            [2]uint64
	CR0, CR2, CR3, CR4, CR8, EFER, APIC uint64
	Interrupts                          [4]uint64
}

// prepareCPU puts the CPU into 64-bit mode and points it at the code.
func prepareCPU(_, cpu int) error {
	var s specialRegisters
	if _, err := ioctl(cpu, "read its registers", kvmGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return err
	}
	const (
		protected, extensionType, numericError, paging = 1 << 0, 1 << 4, 1 << 5, 1 << 31 // CR0
		physicalExtension                              = 1 << 5                          // CR4
		longMode, longModeActive                       = 1 << 8, 1 << 10                 // EFER
	)
	s.CR0 = protected | extensionType | numericError | paging
	s.CR3, s.CR4 = level4Address, physicalExtension
	s.EFER |= longMode | longModeActive
	data := segment{Limit: 1<<32 - 1, Selector: 0x10, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	code := data
	code.Selector, code.Type, code.DB, code.L = 0x08, 11, 0, 1
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = code, data, data, data, data, data
	if _, err := ioctl(cpu, "set its segments", kvmSetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return err
	}
	regs := [18]uint64{5: dataAddress, 16: codeAddress, 17: 2} // struct kvm_regs: RDI, RIP, RFLAGS
	_, err := ioctl(cpu, "set its registers", kvmSetRegs, uintptr(unsafe.Pointer(&regs)))
	return err
}
