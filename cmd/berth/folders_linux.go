package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/share"
	"github.com/berthvm/berth/vm"
)

// openFolders opens the folders that the configuration lends to the machine.
// Berth's own are made first: the guest must not be able to put its own there.
func openFolders(m machine.Machine, c machine.Config, log *slog.Logger) func(context.Context) ([]daemon.Folder, error) {
	return func(context.Context) ([]daemon.Folder, error) {
		folders, err := m.Folders(c)
		if err != nil {
			return nil, err
		}
		if err := m.MakePrivate(); err != nil {
			return nil, err
		}
		var open []daemon.Folder
		for i, f := range folders {
			server, err := share.New(f.Path, share.Options{ReadOnly: f.ReadOnly, Hidden: m.Private(), Log: log})
			if err != nil {
				return open, fmt.Errorf("shares: %w: see %s", err, m.ConfigFile)
			}
			open = append(open, daemon.Folder{Names: f.Names,
				Share: vm.Share{Tag: fmt.Sprintf("host%d", i), Path: f.Path, ReadOnly: f.ReadOnly, Server: server}})
		}
		return open, nil
	}
}
