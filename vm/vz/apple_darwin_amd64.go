//go:build darwin && amd64 && cgo

package vz

import (
	"errors"
	"fmt"

	"github.com/Code-Hex/vz/v3"
)

var errIntel = fmt.Errorf("%w: Virtualization.framework saves machines on Apple silicon only", errors.ErrUnsupported)

func rosettaShare() (vz.DirectoryShare, error) { return nil, nil }

func canSave(*vz.VirtualMachineConfiguration) error { return errIntel }

func saveState(*vz.VirtualMachine, string) error { return errIntel }

func restoreState(*vz.VirtualMachine, string) error { return errIntel }
