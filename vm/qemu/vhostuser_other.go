//go:build !linux

package qemu

import (
	"errors"
	"log/slog"

	"github.com/berthvm/berth/vm"
)

// hasVhostUser says that QEMU has none on this host.
const hasVhostUser = false

func newVsock(*slog.Logger) streams { panic("qemu: no vhost-user on this host") }

func newNetwork(vm.OffloadNetwork, *slog.Logger) backend { panic("qemu: no vhost-user on this host") }

func newFolder(vm.Share, *slog.Logger) (backend, error) { return nil, errors.ErrUnsupported }
