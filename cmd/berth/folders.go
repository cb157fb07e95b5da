package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/berthvm/berth/host/daemon"
	"github.com/berthvm/berth/host/forward"
	"github.com/berthvm/berth/host/machine"
	"github.com/berthvm/berth/host/share/ninep"
	"github.com/berthvm/berth/vm"
)

// openFolders opens the folders that the configuration lends to the machine.
// Berth's own are made first: the guest must not be able to put its own there.
func openFolders(m machine.Machine, c machine.Config, log *slog.Logger) func(context.Context, vm.Caps) ([]daemon.Folder, error) {
	return func(_ context.Context, caps vm.Caps) ([]daemon.Folder, error) {
		folders, err := m.Folders(c)
		if err != nil {
			return nil, err
		}
		if err := m.MakePrivate(); err != nil {
			return nil, err
		}
		each, err := descriptors()
		if err != nil {
			return nil, fmt.Errorf("shares: %w", err)
		}
		each /= max(len(folders), 1)
		var open []daemon.Folder
		for i, f := range folders {
			lent := daemon.Folder{Names: f.Names, Share: vm.Share{Tag: fmt.Sprintf("host%d", i), Path: f.Path, ReadOnly: f.ReadOnly}}
			switch {
			case f.Native && caps.Native:
			case caps.Folders:
				lent.Server, err = newDevice(f, m.Private(), each, log)
			default:
				lent.Stream, err = ninep.New(f.Path, ninep.Options{ReadOnly: f.ReadOnly, Hidden: m.Private(), Files: each, Log: log})
			}
			if err != nil {
				return open, fmt.Errorf("shares: %w: see %s", err, m.ConfigFile)
			}
			open = append(open, lent)
		}
		return open, nil
	}
}

// serveFolders serves those that have no device.
func serveFolders(log *slog.Logger) func(context.Context, net.Listener, func() []byte, func(string) daemon.FolderStream) error {
	return func(ctx context.Context, l net.Listener, secret func() []byte, folder func(string) daemon.FolderStream) error {
		return forward.Folders{Log: log}.Serve(ctx, l, secret, func(tag string) func(net.Conn) error {
			if s := folder(tag); s != nil {
				return s.Serve
			}
			return nil
		})
	}
}
