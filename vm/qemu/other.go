//go:build !linux

package qemu

import (
	"context"
	"fmt"
	"runtime"

	"github.com/berthvm/berth/vm"
)

// supported fails: stock QEMU has no vhost-user here.
func supported() error {
	return fmt.Errorf("%w: the QEMU driver does not work on %s yet, it needs a Linux host", vm.ErrUnavailable, runtime.GOOS)
}

func kvmFault(context.Context, program, string, string) (string, error) {
	return "this is not Linux", nil
}

func (d *Driver) newMachine(*host, vm.Config, string) (vm.Machine, error) { return nil, supported() }

// RunProbeChild does nothing here: there is no KVM to probe.
func RunProbeChild() {}
