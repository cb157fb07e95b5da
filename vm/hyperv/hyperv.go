// Package hyperv runs machines with Hyper-V, on Windows 10 or 11 of any edition, by
// the Host Compute System below it (vm/hyperv/compute). Windows lets only elevated
// processes start machines; everything else here is done as the user, so that a
// tiny service can do the one part (vm/hyperv/elevated).
//
// Only what calls Windows is built for Windows alone. All else is plain Go over two
// small interfaces, compute.Service and platform, and passes the contract suite on
// any host with fakes behind them. Nothing in this package has run on Windows yet:
// its calls run under Wine against a stand-in for computecore.dll
// (make check-windows).
//
// # Devices
//
// The machine has SCSI disks, sockets and a serial port. What else the guest needs
// goes over the sockets, and the driver tells it so on the kernel's command line:
// see guest/wire/devices. Windows could share folders by itself, over Plan 9, but it
// can hide nothing in them, and remembers no owners as the guest sets them. So there
// is no device for Config.Shares: folders are served over streams.
//
// # Disks
//
// VHDX images. A disk that is read only is given raw, and turned into an image in
// the machine's directory at each start. A disk that is written to is an image of
// MakeDisk's: dynamic, and compacted when the machine ends in an orderly way, which
// gives back what the guest has discarded.
//
// # Restart
//
// The system cannot load a kernel twice. A guest that restarts itself ends the
// system's machine, and the driver starts another with the same disks. Hyper-V does
// not say for sure why a machine has ended, so the guest announces a restart.
//
// # Limits
//
// arm64: the system boots no Linux kernel by itself there, only by UEFI, which could
// not be checked; Probe and New fail with vm.ErrUnavailable.
package hyperv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/hyperv/compute"
	"github.com/berthvm/berth/vm/internal/preflight"
	"github.com/berthvm/berth/vm/internal/vhdx"
)

// Options configures a Driver. The zero value works in an elevated process.
type Options struct {
	Service compute.Service // makes the machines; nil is compute.Local()
	Log     *slog.Logger    // nil drops what would be logged
}

// Driver implements vm.Driver and vm.DiskMaker.
type Driver struct {
	service  compute.Service
	platform platform
	log      *slog.Logger
}

// New returns a driver. It looks at nothing yet.
func New(opts Options) *Driver { return newDriver(opts, windows()) }

func newDriver(opts Options, p platform) *Driver {
	d := &Driver{service: opts.Service, platform: p, log: opts.Log}
	if d.service == nil {
		d.service = compute.Local()
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Probe implements vm.Driver.
func (d *Driver) Probe(ctx context.Context) (vm.Caps, error) {
	if err := ctx.Err(); err != nil {
		return vm.Caps{}, err
	}
	version, err := d.service.Probe(ctx)
	if err != nil {
		return vm.Caps{}, err
	}
	return vm.Caps{Driver: "hyperv", Version: version, Acceleration: "hyperv", Arch: runtime.GOARCH}, nil
}

// diskSuffix is how the names of images end.
const diskSuffix = ".vhdx"

// DiskSuffix implements vm.DiskMaker.
func (*Driver) DiskSuffix() string { return diskSuffix }

// MakeDisk implements vm.DiskMaker.
func (d *Driver) MakeDisk(path string, size int64) error {
	image, err := vhdx.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vhdx.Create(path, size)
	case errors.Is(err, vhdx.ErrDirty):
		// Windows mends it when it attaches it, and it grows at the start after that.
		d.log.Warn("the disk was not closed, and grows at another start if it shall", "path", path)
		return nil
	case err != nil:
		return fmt.Errorf("the disk image is damaged: %w", err)
	}
	defer image.Close()
	if size < image.Size() {
		return fmt.Errorf("it cannot shrink: it has %d bytes", image.Size())
	}
	return image.Grow(size)
}

// New implements vm.Driver. Besides the checks of cfg it makes sure of the files
// that cfg names. Windows locks the disks while the machine runs.
func (d *Driver) New(ctx context.Context, cfg vm.Config, dir string) (vm.Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := d.Probe(ctx); err != nil {
		return nil, err
	}
	if err := preflight.Files(cfg, dir); err != nil {
		return nil, err
	}
	if len(cfg.Shares) > 0 {
		return nil, fmt.Errorf("share %q: machines of this driver have no device for shared folders", cfg.Shares[0].Tag)
	}
	for _, disk := range cfg.Disks {
		if !disk.ReadOnly && !strings.EqualFold(filepath.Ext(disk.Path), diskSuffix) {
			return nil, fmt.Errorf("disk %s: Hyper-V writes to %s images only", disk.Path, diskSuffix)
		}
	}
	user, err := d.platform.user()
	if err != nil {
		return nil, fmt.Errorf("cannot find out who the user is: %w", err)
	}
	if err := removeImages(dir); err != nil {
		return nil, err
	}
	return newMachine(d, cfg, dir, user), nil
}

// imageName is the image of a raw disk in the machine's directory.
func imageName(dir string, disk int) string {
	return filepath.Join(dir, fmt.Sprintf("disk%d%s", disk, diskSuffix))
}

// removeImages removes the raw disks' images, also those of a crashed predecessor.
func removeImages(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "disk*"+diskSuffix))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
