package main

import (
	"context"
	"fmt"

	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/vm"
)

// choose picks the driver for a machine: the better one, unless absent says why this
// host does not have it, or the machine's data is on a disk that only the other can
// use.
func choose(m machine.Machine, better, other vm.Driver, absent error) vm.Driver {
	format := ""
	if maker, ok := better.(vm.DiskMaker); ok {
		format = maker.DiskSuffix()
	}
	disk := m.DiskFormat()
	switch {
	case absent != nil && (disk == "" || disk != format):
		return standIn{other, absent}
	case disk != "" && disk != format:
		return standIn{other, fmt.Errorf("the machine's data disk is a %s file, which QEMU has made", disk)}
	}
	return better // it says itself what is wrong with this host
}

// standIn is a driver in the place of a better one, which cannot be used for a reason.
type standIn struct {
	vm.Driver
	reason error
}

// Probe implements vm.Driver.
func (d standIn) Probe(ctx context.Context) (vm.Caps, error) {
	caps, err := d.Driver.Probe(ctx)
	if err != nil {
		return caps, fmt.Errorf("%w; without it: %w", d.reason, err)
	}
	if caps.Reason != "" {
		caps.Reason = "; " + caps.Reason
	}
	caps.Reason = d.reason.Error() + caps.Reason
	return caps, nil
}
