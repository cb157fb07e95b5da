//go:build !windows && (!darwin || !cgo)

package main

import (
	"log/slog"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

func newDriver(m machine.Machine, c machine.Config, log *slog.Logger) vm.Driver {
	return newQEMU(m, c, log)
}
