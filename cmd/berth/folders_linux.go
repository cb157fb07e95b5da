package main

import (
	"context"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/share"
	"github.com/berthvm/berth/vm"
)

// maxDescriptors bounds what is taken where the limit is huge: each costs the
// host's kernel memory.
const maxDescriptors = 64 << 10

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
		var limit unix.Rlimit // Go has raised it as far as it may
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return nil, fmt.Errorf("shares: %w", err)
		}
		// Half of them stays for all else.
		each := int(min(limit.Cur, maxDescriptors)) / 2 / max(len(folders), 1)
		var open []daemon.Folder
		for i, f := range folders {
			server, err := share.New(f.Path, share.Options{ReadOnly: f.ReadOnly, Hidden: m.Private(), Descriptors: each, Log: log})
			if err != nil {
				return open, fmt.Errorf("shares: %w: see %s", err, m.ConfigFile)
			}
			open = append(open, daemon.Folder{Names: f.Names,
				Share: vm.Share{Tag: fmt.Sprintf("host%d", i), Path: f.Path, ReadOnly: f.ReadOnly, Server: server}})
		}
		return open, nil
	}
}
