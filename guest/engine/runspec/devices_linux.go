package runspec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/moby/moby/api/types/container"
)

// maxDevices bounds how many devices one mapping of a directory brings.
const maxDevices = 1000

func deviceNumbers(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, invalid("error gathering device information while adding custom device %q: %v", path, err)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// defaultRules are what every container may do with devices.
func defaultRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, kind := range []string{"c", "b"} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: "m"})
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	pts := int64(136)
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &pts, Access: "rwm"})
}

// device reads one device of the machine.
func device(path, inside string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	d := specs.LinuxDevice{Path: inside, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		UID: &st.Uid, GID: &st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return specs.LinuxDevice{}, errNotDevice
	}
	mode := fs.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	return d, nil
}

var errNotDevice = errors.New("not a device node")

// devices returns the devices of one mapping, which may name a directory.
func devices(m container.DeviceMapping) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	inside, access := m.PathInContainer, m.CgroupPermissions
	if inside == "" {
		inside = m.PathOnHost
	}
	if access == "" {
		access = "rwm"
	}
	if strings.Trim(access, "rwm") != "" {
		return nil, nil, invalid("invalid device mode: %s", access)
	}
	var devs []specs.LinuxDevice
	info, err := os.Stat(m.PathOnHost)
	if err == nil && info.IsDir() {
		if devs, err = devicesUnder(m.PathOnHost, inside); err == nil && len(devs) == 0 {
			err = errNotDevice
		}
	} else if err == nil {
		var d specs.LinuxDevice
		d, err = device(m.PathOnHost, inside)
		devs = append(devs, d)
	}
	if err != nil {
		return nil, nil, invalid("error gathering device information while adding custom device %q: %v", m.PathOnHost, err)
	}
	var rules []specs.LinuxDeviceCgroup
	for i := range devs {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: devs[i].Type,
			Major: &devs[i].Major, Minor: &devs[i].Minor, Access: access})
	}
	return devs, rules, nil
}

func devicesUnder(dir, inside string) ([]specs.LinuxDevice, error) {
	var devs []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away meanwhile
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Name() == "console" || e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		if d, err := device(name, filepath.Join(inside, strings.TrimPrefix(name, dir))); err == nil {
			devs = append(devs, d)
		}
		if len(devs) > maxDevices {
			return errors.New("too many devices")
		}
		return nil
	})
	return devs, err
}
