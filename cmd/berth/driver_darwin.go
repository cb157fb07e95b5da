//go:build darwin && cgo

package main

import (
	"log/slog"
	"runtime"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/vz"
)

// newDriver picks Virtualization.framework, unless the user wants what only QEMU
// does.
func newDriver(m machine.Machine, c machine.Config, log *slog.Logger) vm.Driver {
	if c.Acceleration == machine.AccelerationNone || c.Streams == machine.StreamsSerial {
		return newQEMU(m, c, log)
	}
	return vz.New(vz.Options{Sync: vz.Sync(c.DiskSync), StateDir: m.DataDir, Log: log,
		Rosetta: c.Rosetta && runtime.GOARCH == "arm64", Nested: c.Nested})
}
