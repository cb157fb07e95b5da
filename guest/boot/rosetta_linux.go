package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/guest/wire/devices"
)

const (
	rosettaDir = runDir + "/rosetta"
	binfmtDir  = "/proc/sys/fs/binfmt_misc"
)

// rosettaRule has the kernel run programs for amd64 by Rosetta: those whose first
// bytes, but for the kind of system and of program (a static or a dynamic one), are
// these. C: with the rights of the program. F: the interpreter is opened now, so
// that it is there for containers, which do not see its folder.
const rosettaRule = `:rosetta:M::` +
	`\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00:` +
	`\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:` +
	rosettaDir + `/rosetta:CF`

// useRosetta mounts the folder that the host's driver has attached, and has the
// kernel know what it is for. The modules are loaded.
func useRosetta() error {
	if err := os.MkdirAll(rosettaDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(devices.RosettaTag, rosettaDir, "virtiofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount Rosetta's folder: %w", err)
	}
	if err := unix.Mount("binfmt_misc", binfmtDir, "binfmt_misc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount binfmt_misc: %w", err)
	}
	if err := os.WriteFile(binfmtDir+"/register", []byte(rosettaRule), 0); err != nil {
		return fmt.Errorf("register Rosetta: %w", err)
	}
	return nil
}
