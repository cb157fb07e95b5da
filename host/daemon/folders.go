package daemon

import (
	"io"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/vm"
)

// shares are the folders as the driver wants them.
func (d *daemon) shares() []vm.Share {
	var out []vm.Share
	for _, f := range d.folders {
		out = append(out, f.Share)
	}
	return out
}

// welcomeShares are the folders as the guest wants them: each under all its names.
func (d *daemon) welcomeShares() []wire.Share {
	var out []wire.Share
	for _, f := range d.folders {
		for _, name := range f.Names {
			out = append(out, wire.Share{Tag: f.Tag, Path: name, ReadOnly: f.ReadOnly})
		}
	}
	return out
}

func (d *daemon) lentFolders() []api.Lent {
	var out []api.Lent
	for _, f := range d.folders {
		how := "to read and write"
		if f.ReadOnly {
			how = "to read"
		}
		out = append(out, api.Lent{What: "folder", Detail: f.Path + " " + how})
	}
	return out
}

func (d *daemon) closeFolders() {
	for _, f := range d.folders {
		c, ok := f.Server.(io.Closer)
		if !ok {
			continue
		}
		if err := c.Close(); err != nil {
			d.log.Error("cannot close a shared folder", "path", f.Path, "error", err)
		}
	}
}
