package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/binfmt"
	"github.com/berthvm/berth/guest/wire/devices"
)

const rosettaDir = runDir + "/rosetta"

// useRosetta mounts the folder that the host's driver has attached, and has the
// kernel know what it is for.
func useRosetta() error {
	if err := os.MkdirAll(rosettaDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(devices.RosettaTag, rosettaDir, "virtiofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount Rosetta's folder: %w", err)
	}
	return binfmt.Register(binfmt.Rosetta(rosettaDir + "/rosetta"))
}
