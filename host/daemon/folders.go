package daemon

import (
	"io"

	"github.com/berthvm/berth/guest/wire"
	"github.com/berthvm/berth/host/api"
	"github.com/berthvm/berth/vm"
)

// shares are the folders for the driver.
func (d *daemon) shares() []vm.Share {
	var out []vm.Share
	for _, f := range d.folders {
		if f.Stream == nil {
			out = append(out, f.Share)
		}
	}
	return out
}

// folderStream is the folder for a stream of the guest's; nil when none is lent.
func (d *daemon) folderStream(tag string) FolderStream {
	for _, f := range d.folders {
		if f.Tag == tag {
			return f.Stream
		}
	}
	return nil
}

// welcomeShares are the folders as the guest wants them: each under all its names.
func (d *daemon) welcomeShares() []wire.Share {
	var out []wire.Share
	for _, f := range d.folders {
		for _, name := range f.Names {
			share := wire.Share{Tag: f.Tag, Path: name, ReadOnly: f.ReadOnly}
			if f.Stream != nil {
				share.Protocol = wire.Share9P
			}
			out = append(out, share)
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
		if f.Stream == nil && f.Server == nil {
			how += ", by the hypervisor"
		}
		out = append(out, api.Lent{What: "folder", Detail: f.Path + " " + how})
	}
	return out
}

func (d *daemon) closeFolders() {
	for _, f := range d.folders {
		for _, server := range []any{f.Server, f.Stream} {
			if c, ok := server.(io.Closer); ok {
				if err := c.Close(); err != nil {
					d.log.Error("cannot close a shared folder", "path", f.Path, "error", err)
				}
			}
		}
	}
}
