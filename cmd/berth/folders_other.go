//go:build !linux

package main

import (
	"errors"
	"log/slog"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

// newDevice is for hosts whose drivers have a device that folders can be served to.
func newDevice(machine.Folder, []string, int, *slog.Logger) (vm.ShareServer, error) {
	return nil, errors.ErrUnsupported
}
