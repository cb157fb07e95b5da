package kvm

import "unsafe"

const (
	kvmArmPreferredTarget = 0x8020aeaf
	kvmArmVCPUInit        = 0x4020aeae
	kvmSetOneReg          = 0x4010aeac

	featurePSCI = 1 << 2             // KVM_ARM_VCPU_PSCI_0_2
	regPC       = 0x6030000000100040 // the core register at pc's offset in struct kvm_regs

	probeExit = 24 // KVM_EXIT_SYSTEM_EVENT
)

// guest returns the guest, which calls PSCI SYSTEM_OFF: mov x0, #0x84000008; hvc #0.
func guest() []byte {
	return []byte{
		0x00, 0x01, 0x80, 0xd2, // movz x0, #0x0008
		0x00, 0x80, 0xb0, 0xf2, // movk x0, #0x8400, lsl #16
		0x02, 0x00, 0x00, 0xd4, // hvc #0
	}
}

func prepareVM(int) error { return nil }

// prepareCPU picks the host's own model and points the CPU at the code.
func prepareCPU(vm, cpu int) error {
	var init struct {
		Target   uint32
		Features [7]uint32
	}
	if _, err := ioctl(vm, "find a CPU model", kvmArmPreferredTarget, uintptr(unsafe.Pointer(&init))); err != nil {
		return err
	}
	init.Features[0] |= featurePSCI
	if _, err := ioctl(cpu, "set its model", kvmArmVCPUInit, uintptr(unsafe.Pointer(&init))); err != nil {
		return err
	}
	pc := uint64(codeAddress)
	reg := struct{ ID, Addr uint64 }{regPC, uint64(uintptr(unsafe.Pointer(&pc)))}
	_, err := ioctl(cpu, "set its program counter", kvmSetOneReg, uintptr(unsafe.Pointer(&reg)))
	return err
}
