//go:build !linux

package main

import (
	"context"
	"log/slog"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/machine"
)

// openFolders is for hosts whose drivers cannot share folders yet.
func openFolders(machine.Machine, machine.Config, *slog.Logger) func(context.Context) ([]daemon.Folder, error) {
	return nil
}
