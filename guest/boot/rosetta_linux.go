package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/binfmt"
	"github.com/berthvm/berth/guest/wire/devices"
)

const rosettaDir = runDir + "/rosetta"

// useRosetta mounts the folder that the host's driver has attached, and has the
// kernel know what it is for. It reports whether there is one.
func useRosetta() (bool, error) {
	if err := os.MkdirAll(rosettaDir, 0o755); err != nil {
		return false, err
	}
	err := unix.Mount(devices.RosettaTag, rosettaDir, "virtiofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, "")
	switch {
	case errors.Is(err, unix.EINVAL): // no device has the tag
		return false, nil
	case err != nil:
		return false, fmt.Errorf("mount Rosetta's folder: %w", err)
	}
	return true, binfmt.Register(binfmt.Rosetta(rosettaDir + "/rosetta"))
}
