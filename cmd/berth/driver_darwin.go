//go:build darwin && cgo

package main

import (
	"log/slog"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vz"
)

// newDriver picks Virtualization.framework, unless the user wants emulation.
func newDriver(m machine.Machine, c machine.Config, log *slog.Logger) vm.Driver {
	if c.Acceleration == machine.AccelerationNone {
		return newQEMU(m, c, log)
	}
	return vz.New(vz.Options{StateDir: m.DataDir, Log: log})
}
