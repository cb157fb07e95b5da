//go:build darwin && arm64 && cgo

package vz

import (
	"errors"
	"fmt"

	"github.com/Code-Hex/vz/v3"
)

// rosettaShare returns the folder with Rosetta for Linux, nil where the user has
// not installed it: that is theirs to decide.
func rosettaShare() (vz.DirectoryShare, error) {
	if vz.LinuxRosettaDirectoryShareAvailability() != vz.LinuxRosettaAvailabilityInstalled {
		return nil, nil
	}
	share, err := vz.NewLinuxRosettaDirectoryShare()
	if err != nil {
		return nil, err
	}
	return share, nil
}

// canSave tells why a machine of this configuration cannot be saved, if so.
func canSave(cfg *vz.VirtualMachineConfiguration) error {
	if ok, err := cfg.ValidateSaveRestoreSupport(); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("%w: Virtualization.framework saves no machine of this configuration", errors.ErrUnsupported)
	}
	return nil
}

func saveState(v *vz.VirtualMachine, path string) error { return v.SaveMachineStateToPath(path) }

func restoreState(v *vz.VirtualMachine, path string) error {
	return v.RestoreMachineStateFromURL(path)
}
