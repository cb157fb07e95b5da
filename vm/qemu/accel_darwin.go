package qemu

import (
	"context"

	"golang.org/x/sys/unix"
)

// native is this host's accelerator.
const native = HVF

// nativeFault says what is wrong with the Hypervisor framework; "" is nothing.
func nativeFault(ctx context.Context, p program, arch, model, _ string) (string, error) {
	if yes, err := unix.SysctlUint32("kern.hv_support"); err != nil || yes == 0 {
		return "this Mac has no support for it", nil
	}
	return tryQEMU(ctx, p, arch, HVF, model)
}

// noteFault does nothing here: each start tries anew.
func noteFault(program, string, string) {}

// RunProbeChild does nothing here: there is no KVM to probe.
func RunProbeChild() {}
