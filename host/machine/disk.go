package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// The data disk holds everything the guest keeps. It is a raw image, unless the
// hypervisor has a format of its own.
const (
	diskName  = "data"
	rawSuffix = ".img"
)

// DiskFormat is a hypervisor's own format of disks, see vm.DiskMaker.
type DiskFormat interface {
	DiskSuffix() string
	MakeDisk(path string, size int64) error
}

// raw is the format of all others.
type raw struct{}

func (raw) DiskSuffix() string { return rawSuffix }

// MakeDisk makes a sparse file.
func (raw) MakeDisk(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > size {
		return fmt.Errorf("it cannot shrink: it has %s", Size(info.Size()))
	}
	if info.Size() == 0 {
		if err := makeSparse(f); err != nil {
			return err
		}
	}
	if info.Size() < size {
		return f.Truncate(size)
	}
	return nil
}

// PrepareDisk makes the data disk as large as configured, and says what stands in
// the way. A disk never shrinks. A nil format is that of raw images.
func (m Machine) PrepareDisk(size int64, format DiskFormat) (path string, err error) {
	if format == nil {
		format = raw{}
	}
	path = filepath.Join(m.DataDir, diskName+format.DiskSuffix())
	for _, other := range m.disks() {
		if other != path {
			return "", fmt.Errorf("%w: the data of machine %q is in %s, which the hypervisor that is chosen now does not use: "+
				"choose the other one again in %s, or move that file away to begin anew", ErrAtRisk, m.Name, other, m.ConfigFile)
		}
	}
	if err := format.MakeDisk(path, size); err != nil {
		return "", fmt.Errorf("disk: cannot make the data disk %s %s large: %w: see %s", path, Size(size), err, m.ConfigFile)
	}
	return path, nil
}

// DiskFormat is the suffix of the data disk there is, by which its format is known;
// empty when there is none.
func (m Machine) DiskFormat() string {
	if disks := m.disks(); len(disks) > 0 {
		return filepath.Ext(disks[0])
	}
	return ""
}

// disks are the data disks there are: one, unless somebody has meddled.
func (m Machine) disks() []string {
	files, _ := filepath.Glob(filepath.Join(m.DataDir, diskName+".*"))
	return slices.DeleteFunc(files, func(name string) bool {
		info, err := os.Stat(name)
		return errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular()
	})
}

// DiskUsage is the data disk's size, where its file tells, else 0, and what it
// occupies of the host's disk, in bytes.
func (m Machine) DiskUsage() (size, allocated int64) {
	for _, name := range m.disks() {
		if info, err := os.Stat(name); err == nil {
			if filepath.Ext(name) == rawSuffix {
				size = info.Size()
			}
			allocated += allocatedBytes(name, info)
		}
	}
	return size, allocated
}
