package qemu

import (
	"context"
	"fmt"
	"runtime"

	"github.com/berthvm/berth/vm"
)

// acceleration picks the accelerator, and says why it is not the best one.
func (d *Driver) acceleration(ctx context.Context, p program) (accel, reason string, err error) {
	switch d.opts.Acceleration {
	case TCG:
		return TCG, "asked for", nil
	case "", KVM:
	default:
		return "", "", fmt.Errorf("unknown acceleration %q: use %s or %s", d.opts.Acceleration, KVM, TCG)
	}
	if d.opts.Arch != runtime.GOARCH {
		reason = fmt.Sprintf("guests for %s are emulated on %s", d.opts.Arch, runtime.GOARCH)
	} else if reason, err = kvmFault(ctx, p, d.opts.Arch, d.opts.CacheDir); err != nil {
		return "", "", err
	}
	switch {
	case reason == "":
		return KVM, "", nil
	case d.opts.Acceleration == KVM:
		return "", "", fmt.Errorf("%w: KVM: %s", vm.ErrUnavailable, reason)
	}
	d.log.Info("no KVM, emulating", "reason", reason)
	return TCG, "KVM: " + reason, nil
}
