package main

import (
	"log/slog"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/share"
	"github.com/berthvm/berth/vm"
)

// newDevice serves a folder to a device of the machine's.
func newDevice(f machine.Folder, hidden []string, descriptors int, log *slog.Logger) (vm.ShareServer, error) {
	return share.New(f.Path, share.Options{ReadOnly: f.ReadOnly, Hidden: hidden, Descriptors: descriptors, Log: log})
}
