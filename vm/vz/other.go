//go:build !darwin || !cgo

package vz

import (
	"fmt"
	"runtime"

	"github.com/berthvm/berth/vm"
)

func system() framework { return missing{} }

// missing is the framework where there is none. Only probe is ever called.
type missing struct{ framework }

func (missing) probe() (string, error) {
	if runtime.GOOS == "darwin" {
		return "", fmt.Errorf("%w: this program was built without cgo, which Virtualization.framework needs: build it on a Mac with `make build`", vm.ErrUnavailable)
	}
	return "", fmt.Errorf("%w: Virtualization.framework is part of macOS, and this is %s", vm.ErrUnavailable, runtime.GOOS)
}
