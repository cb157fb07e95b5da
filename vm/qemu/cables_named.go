package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
)

// named are cables for hosts whose processes inherit no sockets: QEMU connects to
// names in the machine's directory, where nobody but its user may. Linux has them for
// tests.
type named struct{}

func (named) monitor(_ *cables, path string) (plug, error) { return plug{path: path}, nil }

func (named) cable(_ *cables, dir, name string) (*cable, plug, error) {
	path := filepath.Join(dir, name+".sock")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, plug{}, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, plug{}, err
	}
	return &cable{wait: l}, plug{path: path}, nil
}
