package qemu

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/berthvm/berth/vm"
)

// acceleration picks the accelerator and the model of CPU, and says why it is not
// the best one.
func (d *Driver) acceleration(ctx context.Context, p program) (accel, model, reason string, err error) {
	asked := d.opts.Acceleration
	switch asked {
	case "", TCG, native:
	default:
		return "", "", "", fmt.Errorf("unknown acceleration %q: use %s or %s", asked, native, TCG)
	}
	emulated := cpuModels(d.opts.Arch, TCG)[0]
	if asked == TCG {
		return TCG, emulated, "asked for", nil
	}
	if d.opts.Arch != runtime.GOARCH {
		reason = fmt.Sprintf("guests for %s are emulated on %s", d.opts.Arch, runtime.GOARCH)
	} else if model, reason, err = d.nativeModel(ctx, p); err != nil {
		return "", "", "", err
	}
	name := strings.ToUpper(native)
	switch {
	case reason == "":
		return native, model, "", nil
	case asked != "":
		return "", "", "", fmt.Errorf("%w: %s: %s", vm.ErrUnavailable, name, reason)
	}
	d.log.Info("no "+name+", emulating", "reason", reason)
	return TCG, emulated, name + ": " + reason, nil
}

// nativeModel finds the best model of CPU that works with the host's accelerator,
// or what is wrong with the best.
func (d *Driver) nativeModel(ctx context.Context, p program) (model, fault string, err error) {
	for i, model := range cpuModels(d.opts.Arch, native) {
		why, err := nativeFault(ctx, p, d.opts.Arch, model, d.opts.CacheDir)
		if err != nil || why == "" {
			return model, "", err
		}
		if i == 0 {
			fault = why
		}
	}
	return "", fault, nil
}
