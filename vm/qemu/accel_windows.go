package qemu

import (
	"context"
	"unsafe"

	"golang.org/x/sys/windows"
)

// native is this host's accelerator.
const native = WHPX

// nativeFault says what is wrong with the Windows Hypervisor Platform; "" is
// nothing.
func nativeFault(ctx context.Context, p program, arch, model, _ string) (string, error) {
	const off = `it is off: switch on "Windows Hypervisor Platform" under "Turn Windows features on or off", and restart`
	dll := windows.NewLazySystemDLL("WinHvPlatform.dll")
	get := dll.NewProc("WHvGetCapability")
	if get.Find() != nil {
		return off, nil
	}
	const hypervisorPresent = 0 // WHvCapabilityCodeHypervisorPresent
	var present, written uint32
	result, _, _ := get.Call(hypervisorPresent, uintptr(unsafe.Pointer(&present)), unsafe.Sizeof(present), uintptr(unsafe.Pointer(&written)))
	if result != 0 || present == 0 {
		return off, nil
	}
	return tryQEMU(ctx, p, arch, WHPX, model)
}

// noteFault does nothing here: each start tries anew.
func noteFault(program, string, string) {}

// RunProbeChild does nothing here: there is no KVM to probe.
func RunProbeChild() {}
