// Package vz runs machines with Apple's Virtualization.framework, on macOS 13 or
// newer, by Code-Hex/vz. The framework's objects live in this process, which has
// to be signed with the entitlement com.apple.security.virtualization (`make
// build` does so), and the machine ends with it.
//
// Only the files with the build tags darwin and cgo call the framework. All else
// is plain Go over a small interface, and passes the contract suite on any host
// with a fake behind it. Without cgo, and on other systems, Probe and New fail
// with vm.ErrUnavailable. Nothing in this package has run on a Mac yet: the calls
// to the framework are type-checked (make typecheck-darwin) and no more.
//
// # Streams
//
// The framework cannot close a vsock connection by halves, and does not tell that
// the guest has restarted itself. Both come from the guest instead, see
// guest/wire/framed: the driver sets that package's kernel parameter, frames every
// stream, and takes the guest's call to framed.BootPort for its restart.
//
// # Folders
//
// Config.Shares are the framework's own virtiofs (Caps.Native). It can hide nothing
// in them and remembers no owners, so that it has no place for a share's Server: who
// needs one serves the folder over streams. Rosetta's folder is made by the
// framework too, and the guest is told by a kernel parameter (guest/wire/devices).
//
// # Disks
//
// Raw images, cached by the host. A guest's flush reaches the medium (SyncFull).
// SyncFsync is the faster choice: what was flushed survives a crash of the guest
// and of the host's programs, but not a power cut.
//
// # Kernels
//
// The framework takes what the kernel's build calls Image on arm64, uncompressed,
// and bzImage on amd64. New refuses others.
//
// # Limits
//
// Closing a listener leaves one goroutine that waits for ever, and so does a
// machine, in the library's own channels: a process runs few machines. A Dial that
// the framework never answers is given up, its goroutine stays until it does.
package vz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/berthvm/berth/guest/wire/devices"
	"github.com/berthvm/berth/vm"
	"github.com/berthvm/berth/vm/internal/preflight"
)

// Sync is what a guest's flush of a disk means on the host.
type Sync string

// The kinds of Sync, see the package doc.
const (
	SyncFull  Sync = "full"
	SyncFsync Sync = "fsync"
)

// Options configures a Driver. The zero value works.
type Options struct {
	Sync     Sync         // empty is SyncFull
	StateDir string       // keeps the machine's identifier from run to run; empty makes a new one each time
	Rosetta  bool         // attach Rosetta's folder where it is installed (Apple silicon)
	Nested   bool         // let the guest run machines of its own where that is supported (M3, macOS 15)
	Log      *slog.Logger // nil drops what would be logged
}

// Driver implements vm.Driver.
type Driver struct {
	opts    Options
	log     *slog.Logger
	fw      framework
	patient time.Duration // how long one Connect may take
}

// New returns a driver. It looks at nothing yet.
func New(opts Options) *Driver { return newDriver(opts, system()) }

func newDriver(opts Options, fw framework) *Driver {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{opts: opts, log: log, fw: fw, patient: connectTimeout}
}

// Probe implements vm.Driver.
func (d *Driver) Probe(ctx context.Context) (vm.Caps, error) {
	if err := ctx.Err(); err != nil {
		return vm.Caps{}, err
	}
	version, err := d.fw.probe()
	if err != nil {
		return vm.Caps{}, err
	}
	return vm.Caps{Driver: "vz", Version: version, Acceleration: "hvf", Arch: runtime.GOARCH, Native: true}, nil
}

// New implements vm.Driver. Besides the checks of cfg it makes sure of the files
// that cfg names. It locks no disk: that a disk has one machine is the caller's
// to see to.
func (d *Driver) New(ctx context.Context, cfg vm.Config, dir string) (vm.Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := d.Probe(ctx); err != nil {
		return nil, err
	}
	switch d.opts.Sync {
	case "", SyncFull, SyncFsync:
	default:
		return nil, fmt.Errorf("disk-sync: %q is neither %s nor %s", d.opts.Sync, SyncFull, SyncFsync)
	}
	if err := d.fw.limits().check(cfg); err != nil {
		return nil, err
	}
	if err := preflight.Files(cfg, dir); err != nil {
		return nil, err
	}
	for _, s := range cfg.Shares {
		if err := checkShare(s); err != nil {
			return nil, fmt.Errorf("share %q: %w", s.Tag, err)
		}
	}
	if err := d.fw.checkKernel(cfg.Kernel); err != nil {
		return nil, err
	}
	return newMachine(d, cfg), nil
}

func checkShare(s vm.Share) error {
	if s.Server != nil {
		return errors.New("machines of this driver have no device for a server of folders")
	}
	if s.Tag == devices.RosettaTag {
		return errors.New("the tag is Rosetta's")
	}
	st, err := os.Stat(s.Path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a folder", s.Path)
	}
	return err
}
