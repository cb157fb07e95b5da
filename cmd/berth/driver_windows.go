package main

import (
	"log/slog"

	"golang.org/x/sys/windows"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv"
	"github.com/berthvm/berth/vm/hyperv/compute"
	"github.com/berthvm/berth/vm/hyperv/elevated"
)

// newDriver picks Hyper-V, unless the user wants what only QEMU does, or this Windows
// has it not, or not switched on. An elevated process starts its machines itself.
func newDriver(m machine.Machine, c machine.Config, log *slog.Logger) vm.Driver {
	if c.Acceleration == machine.AccelerationNone || c.Streams == machine.StreamsSerial {
		return newQEMU(m, c, log)
	}
	service := elevated.Client()
	if windows.GetCurrentProcessToken().IsElevated() {
		service = compute.Local()
	}
	_, absent := compute.Check()
	return choose(m, hyperv.New(hyperv.Options{Service: service, Log: log}), newQEMU(m, c, log), absent)
}
